"""The checkpoints of children: what they have from their parent, and what is their own.

Runs on the host.
"""

import dataclasses

from para_jax._adapters import sharing
from para_jax._adapters.adapter import Adapter
from para_jax._adapters.checkpoint import Checkpoint, Child
from para_jax._adapters.stacks import by_member
from para_jax._pruning.repack import Form
from para_jax._pruning.report import Report


def common(parent: Checkpoint, form: Form) -> Checkpoint:
    """Return what all children of a parent have in common: all but the adapters.

    Args:
      parent: The checkpoint.
      form: The form of the children.
    """
    names = [x.name for x in dataclasses.fields(Checkpoint)]
    fields = {name: getattr(parent, name) for name in names}
    # A ragged child has one path a kernel, so all that is kept by path is split too.
    if form == "ragged":
        for name in ("layers", "biases"):
            fields[name] = by_member(fields[name], parent.adapters)
    return Checkpoint(**fields | {"adapters": {}, "shared": sharing.held(parent)})


def child(
    from_parent: Checkpoint, adapters: dict[str, Adapter], account: Report
) -> Child:
    """Return the checkpoint of a child.

    Args:
      from_parent: What it has from its parent, see `common`.
      adapters: The child's.
      account: The report of the compression.
    """
    ranks = account.ranks
    one = {"parent": from_parent.source, **account.summary(), "ranks": ranks}
    cuts = [*from_parent.provenance.get("cuts", []), one]
    gone = {x.path: (x.inputs, x.outputs) for x in account.modules if not ranks[x.path]}
    shared = {p: owner for p, owner in from_parent.shared.items() if p not in ranks}
    if more := sharing.notes(shared):
        account = dataclasses.replace(account, notes=(*account.notes, *more))
    # A child is not the file that its parent was read from.
    fields = vars(from_parent) | {
        "adapters": adapters,
        "absent": {**from_parent.absent, **gone},
        "shared": shared,
        "provenance": {**from_parent.provenance, "cuts": cuts},
        "source": "",
    }
    result = Child(**fields, report=account)
    return sharing.spread(result, shared) if shared else result
