"""From names to documents' texts: files, packed or remote, in every format."""
