"""The fundamentals under everything else, each small enough to be read in one sitting."""
