"""`python -m fluxexp.score DIR [metrics=full ...]`: score the images of a run or a sweep, again or for the first time.

Under `accelerate launch -m fluxexp.score` all ranks share the work.
"""

from fluxexp.cli.score_command import score_main

if __name__ == "__main__":
    score_main()
