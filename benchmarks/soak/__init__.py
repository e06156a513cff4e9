"""Mixed traffic for minutes or hours: does anything grow, and do the scores stay the same?"""
