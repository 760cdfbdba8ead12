"""Devices, and several processes on one run directory."""
