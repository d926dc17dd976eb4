"""Checks that JAX sees the devices it should, on every host.

As python -m experiments.tpu.launch experiments.tpu.devices --platform tpu --count 16
"""

import argparse
import platform

import jax


def main(argv: list[str] | None = None) -> None:
    """Prints what there is.

    Raises:
      SystemExit: with one line, if that is not what the command line asks for.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments.tpu.devices")
    parser.add_argument("--platform", help="cpu, gpu or tpu; default: any")
    parser.add_argument("--count", type=int, help="over all processes; default: any")
    options = parser.parse_args(argv)

    found, processes = jax.devices(), jax.process_count()
    here = f"process {jax.process_index()} of {processes} on {platform.node()}"
    what = f"{len(found)} devices, {jax.local_device_count()} here: {found[0].device_kind}"
    if options.platform not in (None, found[0].platform):
        raise SystemExit(f"{here}: {what}, which is not {options.platform}")
    if options.count not in (None, len(found)):
        raise SystemExit(f"{here}: {what}; there should be {options.count}")
    if len(found) != processes * jax.local_device_count():
        raise SystemExit(f"{here}: {what}, so other hosts have more or fewer")
    print(f"{here}: {what}")


if __name__ == "__main__":
    main()
