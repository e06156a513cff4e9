"""Proofs and gates: does an engine keep the ranking?"""
