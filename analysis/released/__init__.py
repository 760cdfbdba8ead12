"""The released code's statistics, number for number, with every departure from the paper named."""
