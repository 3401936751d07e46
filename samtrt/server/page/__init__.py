"""What the browser loads: files with their hashes and encodings."""
