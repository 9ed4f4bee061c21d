"""What should be looked at first on a graphics card, in one report: ``make card``."""
