"""What a person or a regulator reads of a federation, and how its transcripts are held against each other."""
