"""Models and reviews of other people: found by name, checked, converted, opened, or refused in a
sentence.
"""
