"""Estimates on one real step: does teachability predict its gain, and would a placebo show the same?"""
