"""From samples to results: statistics, schedules, ceilings, comparisons."""
