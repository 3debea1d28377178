"""This program's version: the package's metadata is made from it, because looking it up there takes 12 ms."""

VERSION = "0.1.0"
