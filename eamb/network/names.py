"""Names of tasks and networks, for settings and options that are read without loading torch."""

TASKS = ("aesthetics", "emotion", "series")
PAIR_NETWORKS = ("resnet", "paunit")  # of the task series
NETWORKS = ("eambnet", "linear", *PAIR_NETWORKS)  # as `model.network` calls them
SMALLEST_SIDE = 64  # of a picture, in pixels
