"""The tasks of Meta-World v3 (metaworld 3.1) as data, so that settings are checked without MuJoCo.

Names, groups and their order are metaworld's own (``metaworld.env_dict``); a test compares them.
Yu et al. 2019, "Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning".
"""

from __future__ import annotations

INSTRUCTIONS: dict[str, str] = {
    "assembly-v3": "pick up the nut and place it onto the peg",
    "basketball-v3": "pick up the basketball and dunk it into the basket",
    "bin-picking-v3": "pick up the cube from the red bin and place it into the blue bin",
    "box-close-v3": "pick up the lid and put it on the box",
    "button-press-topdown-v3": "press the button down from above",
    "button-press-topdown-wall-v3": "reach over the wall and press the button down from above",
    "button-press-v3": "push the button in from the front",
    "button-press-wall-v3": "reach over the wall and push the button in",
    "coffee-button-v3": "press the button on the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine to the goal",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial by 180 degrees",
    "disassemble-v3": "pick up the nut and lift it off the peg",
    "door-close-v3": "push the door closed",
    "door-lock-v3": "lock the door by turning the lock clockwise",
    "door-open-v3": "pull the door open by its handle",
    "door-unlock-v3": "unlock the door by turning the lock counterclockwise",
    "hand-insert-v3": "insert the gripper into the hole",
    "drawer-close-v3": "push the drawer closed",
    "drawer-open-v3": "pull the drawer open by its handle",
    "faucet-open-v3": "open the faucet by turning its handle counterclockwise",
    "faucet-close-v3": "close the faucet by turning its handle clockwise",
    "hammer-v3": "pick up the hammer and drive the nail into the box",
    "handle-press-side-v3": "press the sideways handle down",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the sideways handle up",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "pull the lever up",
    "pick-place-wall-v3": "pick up the puck, carry it over the wall and place it at the goal",
    "pick-out-of-hole-v3": "pick the puck out of the hole and carry it to the goal",
    "pick-place-v3": "pick up the puck and place it at the goal",
    "plate-slide-v3": "slide the plate forward into the net",
    "plate-slide-side-v3": "slide the plate sideways into the net",
    "plate-slide-back-v3": "slide the plate back out of the net",
    "plate-slide-back-side-v3": "slide the plate sideways out of the net",
    "peg-insert-side-v3": "pick up the peg and insert it sideways into the hole",
    "peg-unplug-side-v3": "pull the peg sideways out of the hole",
    "soccer-v3": "push the soccer ball into the goal",
    "stick-push-v3": "grasp the stick and push the thermos with it to the goal",
    "stick-pull-v3": "grasp the stick and pull the thermos with it to the goal",
    "push-v3": "push the puck to the goal",
    "push-wall-v3": "push the puck around the wall to the goal",
    "push-back-v3": "push the block back to the goal",
    "reach-v3": "move the gripper to the goal",
    "reach-wall-v3": "move the gripper around the wall to the goal",
    "shelf-place-v3": "pick up the block and place it on the shelf",
    "sweep-into-v3": "sweep the block into the hole in the table",
    "sweep-v3": "sweep the block off the table",
    "window-open-v3": "slide the window open",
    "window-close-v3": "slide the window closed",
}
"""One natural-language instruction for each task. metaworld has none of its own: these follow the task
descriptions of the paper's appendix, worded like the instructions that vision-language-action models were
trained on: imperative, lower case, no full stop."""

MT50: tuple[str, ...] = tuple(INSTRUCTIONS)

MT10: tuple[str, ...] = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)

TASK_GROUPS: dict[str, tuple[str, ...]] = {"MT10": MT10, "MT50": MT50}
