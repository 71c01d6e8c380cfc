"""What hostile sessions do, an act at a time, and what every act has at hand."""
