"""Applications to read and to copy from. Not part of the package."""
