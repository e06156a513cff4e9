"""The served model beside what else ranks with the same checkpoint."""
