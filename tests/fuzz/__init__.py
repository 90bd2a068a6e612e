"""Files of every kind, changed at random: each is read, or refused in one line."""
