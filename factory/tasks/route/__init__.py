"""The task `route`: an utterance in, one of given labels out, or out of scope."""
