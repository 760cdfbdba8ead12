"""What a part of the update batch keeps of the whole batch's gain to first order, and how well that is known."""
