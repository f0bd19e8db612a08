"""Scores and their statistics: plain functions of truth and prediction."""
