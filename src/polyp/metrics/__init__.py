"""Every number that polyp prints, with its definition, its interval and its test.

May import images, errors and no other module of polyp.
"""
