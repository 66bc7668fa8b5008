"""Packing: rows that share a policy are computed together; batches and optimiser steps."""
