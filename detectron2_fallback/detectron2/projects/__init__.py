"""Parts of detectron2's example projects that other projects build on."""
