"""The public names of w2wpp, with their types. `__init__.py` imports each on first use."""

from .adapters.population import train_population as train_population
from .adapters.train import AdapterOptions as AdapterOptions
from .base.drawing import picture_rows as picture_rows
from .base.model import BaseModel as BaseModel
from .common.errors import W2WError as W2WError
from .dataset.select_merge import merge as merge
from .dataset.select_merge import select as select
from .dataset.weights import WeightDataset as WeightDataset
from .evaluation.collapse import collapse as collapse
from .evaluation.id_score import id_score as id_score
from .exchange.denoiser import Denoiser as Denoiser
from .exchange.importing import import_loras as import_loras
from .inversion.bound import EncoderOptions as EncoderOptions
from .inversion.encoder import PhotoEncoder as PhotoEncoder
from .inversion.evolution import EvolutionOptions as EvolutionOptions
from .inversion.from_adapter import AdapterReading as AdapterReading
from .inversion.from_adapter import points_of_adapters as points_of_adapters
from .inversion.gradient import PUBLISHED as PUBLISHED
from .inversion.gradient import REFINED as REFINED
from .inversion.gradient import InversionOptions as InversionOptions
from .inversion.invert_photos import invert_photos as invert_photos
from .inversion.invert_photos import recipe_from as recipe_from
from .inversion.inverted_photos import InvertedPhotos as InvertedPhotos
from .inversion.person_photos import PersonPhotos as PersonPhotos
from .inversion.resembling import LikenessOptions as LikenessOptions
from .inversion.teaching import fit_encoder as fit_encoder
from .inversion.teaching import fit_with_decoder as fit_with_decoder
from .inversion.watching import InversionStep as InversionStep
from .lora.layout import Layout as Layout
from .photos.alignment import AlignedFaces as AlignedFaces
from .photos.alignment import align_photos as align_photos
from .photos.images import grid as grid
from .photos.images import read_image as read_image
from .photos.images import write_image as write_image
from .spaces.anchored_vae import AnchoredOptions as AnchoredOptions
from .spaces.anchored_vae import AnchoredVaeSpace as AnchoredVaeSpace
from .spaces.base import Space as Space
from .spaces.edits import attribute_directions as attribute_directions
from .spaces.edits import debias as debias
from .spaces.edits import edit as edit
from .spaces.pca import PcaSpace as PcaSpace
from .spaces.point_files import load_points as load_points
from .spaces.point_files import save_points as save_points
from .spaces.points import interpolate as interpolate
from .spaces.points import nearest as nearest
from .spaces.reconstruct import reconstruct as reconstruct
from .spaces.vae import VaeSpace as VaeSpace
from .spaces.vae_options import VaeOptions as VaeOptions

__version__: str

__all__ = [
    "PUBLISHED",
    "REFINED",
    "AdapterOptions",
    "AdapterReading",
    "AlignedFaces",
    "AnchoredOptions",
    "AnchoredVaeSpace",
    "BaseModel",
    "Denoiser",
    "EncoderOptions",
    "EvolutionOptions",
    "InversionOptions",
    "InversionStep",
    "InvertedPhotos",
    "Layout",
    "LikenessOptions",
    "PcaSpace",
    "PersonPhotos",
    "PhotoEncoder",
    "Space",
    "VaeOptions",
    "VaeSpace",
    "W2WError",
    "WeightDataset",
    "__version__",
    "align_photos",
    "attribute_directions",
    "collapse",
    "debias",
    "edit",
    "fit_encoder",
    "fit_with_decoder",
    "grid",
    "id_score",
    "import_loras",
    "interpolate",
    "invert_photos",
    "load_points",
    "merge",
    "nearest",
    "picture_rows",
    "points_of_adapters",
    "read_image",
    "recipe_from",
    "reconstruct",
    "save_points",
    "select",
    "train_population",
    "write_image",
]
