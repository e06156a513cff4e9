"""What a ranker tells of its calls: to traces, to metrics, or to observers of your own."""
