"""The definition of every number that polyp prints."""
