"""What trials and Ray Tune say to each other."""

#: Keys of a report after an epoch.
ACCURACY, GAP, EPOCH = "accuracy", "gap", "epoch"
#: Keys of a trial's last report, and of its configuration.
RESULT, NUMBER, VALUES = "result", "number", "values"
#: Key of a report: epochs that a method has trained copies of the model for.
INSIDE = "inside"
