"""Layouts of image tables, one module each; files.image_shards chooses by what a folder holds.

A layout has a NAME, which a TableSlice keeps, and two functions. `list_shards` lists the files or
class folders of a table as slices, from names and schemas alone. `read_rows` yields the rows of a
slice: their numbers, and the values of the columns asked for. An image may be a place to read.

`columns` is what several share. `lake_tables` names the parquet files of a table of other formats.
"""
