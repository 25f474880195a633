"""Other people's models and reviews: found by name, checked, converted, opened, or refused; and
what scores texts.
"""
