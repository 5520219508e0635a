"""The name by which earlier programs import the model."""

from mpnet_ds.models import MPNetForPretraining as MPNetForPretraining
