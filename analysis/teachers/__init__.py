"""Several teachers on one bank: what each has to teach this student, and what a step towards it gains."""
