"""ROI heads of person search and of distillable detectors."""
