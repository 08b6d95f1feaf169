"""Write a tree with each of Orbax's own writers; return the tree's folder."""

import orbax.checkpoint as ocp_v0
from orbax.checkpoint import v1 as ocp


def with_v1(path, tree):
    ocp.save(path, tree)
    return path


def with_v1_training_checkpointer(path, tree):
    with ocp.training.Checkpointer(path) as checkpointer:
        checkpointer.save(7, tree)
    (step,) = (x for x in path.iterdir() if x.name.endswith("7"))
    return step


def with_pytree_checkpointer(path, tree):
    with ocp_v0.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def with_standard_checkpointer(path, tree):
    with ocp_v0.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
        checkpointer.wait_until_finished()
    return path


def with_checkpoint_manager(path, tree):
    with ocp_v0.CheckpointManager(path) as manager:
        manager.save(7, args=ocp_v0.args.StandardSave(tree))
        manager.wait_until_finished()
    return path / "7"


def with_named_items(path, tree):
    with ocp_v0.CheckpointManager(path) as manager:
        items = {
            "model_params": ocp_v0.args.PyTreeSave(tree),
            "optimizer_state": ocp_v0.args.PyTreeSave({"count": True}),
        }
        manager.save(7, args=ocp_v0.args.Composite(**items))
    return path / "7"
