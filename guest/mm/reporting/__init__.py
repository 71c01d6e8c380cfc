"""The page reporters: reported boundary (v12, 2019), rotation (Linux 5.7), scan, and what they share."""
