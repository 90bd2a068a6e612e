"""The claims about stitching on our own networks, with the controls they lacked: docs/findings.md."""
