"""minibeit3 pretrain: masked data modelling from the terminal."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from minibeit3.cli import command


@command
def pretrain(
    folder: Annotated[Path, typer.Argument(help="Run folder; a run that is there goes on.")],
    codes: Annotated[
        Path, typer.Option("--visual-tokenizer", help="Folder of a VQ-KD or pixel tokenizer.")
    ] = Path("data_samples/checkpoints/vqkd"),
    preset: Annotated[str, typer.Option(help="nano, tiny, small, base, large or giant.")] = "tiny",
    variant: Annotated[str, typer.Option(help="paper or released.")] = "paper",
    start: Annotated[
        Path | None, typer.Option(help="A run or saved model whose weights to begin with.")
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="emoji, scenes, scenes-2 (few things), scene-twins, emoji-scenes, glosses, "
            "folders; x:2: twice"
        ),
    ] = "emoji,emoji-scenes,scenes:2,glosses",
    steps: Annotated[int, typer.Option(help="Updates of the parameters.")] = 3000,
    batch_size: Annotated[int, typer.Option(help="Images + texts + pairs, in equal thirds.")] = 96,
    pairs: Annotated[
        int | None, typer.Option(help="How many of a batch are pairs, if not a third.")
    ] = None,
    accumulate: Annotated[int, typer.Option(help="Parts that a batch is computed in.")] = 1,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    warmup: Annotated[int, typer.Option(help="Steps of linear rise.")] = 200,
    clip: Annotated[float, typer.Option(help="Largest gradient norm; 0 = any.")] = 3.0,
    image_weight: Annotated[float, typer.Option(help="Factor of the image loss.")] = 1.0,
    whole_images: Annotated[
        bool, typer.Option(help="Leave the images of pairs unmasked (not the paper's).")
    ] = False,
    one_side: Annotated[
        float | None,
        typer.Option(help="Hide words in this share of the pairs, patches in the others."),
    ] = None,
    pair_words: Annotated[
        float, typer.Option(help="Share of words hidden in pairs; the paper's is 0.5.")
    ] = 0.5,
    drop_path: Annotated[
        float | None, typer.Option(help="Stochastic depth of the last layer.")
    ] = None,
    muon: Annotated[bool, typer.Option(help="Step by Muon (the paper: by AdamW).")] = False,
    seed: Annotated[int, typer.Option(help="Of weights, data order and masks.")] = 0,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    workers: Annotated[int, typer.Option(help="Processes that prepare batches.")] = 0,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float8.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    shard: Annotated[
        bool, typer.Option(help="Under torchrun: FSDP, parameters shared out; else DDP.")
    ] = False,
    recompute: Annotated[bool, typer.Option(help="Less memory, a third more time.")] = False,
) -> None:
    """Pretrain by masked data modelling, as the paper does unless an option says otherwise.

    Ctrl-C or a crash loses nothing before the last checkpoint: the same command goes on. In
    several processes: torchrun --nproc-per-node 2 -m -- minibeit3 pretrain FOLDER --accumulate 2.
    """
    from minibeit3.backbones import preset as sizes
    from minibeit3.distributed import joined
    from minibeit3.precision import pick_device
    from minibeit3.pretrain import Hiding
    from minibeit3.pretrain import pretrain as run
    from minibeit3.runlog import progress
    from minibeit3.train import TrainConfig
    from minibeit3.visual_codes import open_codes

    config = sizes(preset, variant)  # pyright: ignore[reportArgumentType]: checked there
    config = config if drop_path is None else replace(config, drop_path=drop_path)
    plan = TrainConfig(
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        lr=lr,
        warmup=warmup,
        clip=clip or None,
        seed=seed,
        save_every=save_every,
        workers=workers,
        dtype=dtype,  # pyright: ignore[reportArgumentType]: checked there
    )
    with joined("fsdp" if shard else "ddp", recompute) as team:
        run(
            config,
            data.split(","),
            open_codes(codes).to(pick_device(device)).tokens,
            plan,
            folder,
            hiding=Hiding(pair_images=not whole_images, pair_text=pair_words, one_side=one_side),
            image_weight=image_weight,
            muon=muon,
            pairs=pairs,
            start=start,
            device=device,
            on_log=progress(steps),
            team=team,
        )
    if team.first:
        typer.echo(f"model saved to {folder / 'model'}")
