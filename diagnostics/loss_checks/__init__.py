"""Does a loss teach? Its expected gradient at a student's logits beside that of exact KL, and mistakes by name."""
