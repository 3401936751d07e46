"""What the reports are made of: accuracy and speed beside Meta's package, mean IoU on scenes."""
