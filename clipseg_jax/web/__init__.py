"""The web page: a visitor's photo, segmented by words, in a browser."""
