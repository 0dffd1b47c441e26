"""The data sets: the settings, raw files and reader of each, and the cache of what was made from them."""
