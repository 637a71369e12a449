"""Objectives of a search, one module each (see tuning.search.Objective)."""
