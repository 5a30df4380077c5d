"""The app listener: what applications call."""
