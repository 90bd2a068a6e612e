"""Networks from outside: weight files, libraries and functions of users, and networks in front of images."""
