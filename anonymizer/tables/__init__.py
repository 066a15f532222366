"""Tables of the standard as data files, and the program that makes them."""
