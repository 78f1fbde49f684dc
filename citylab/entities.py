"""The SensorThings entity table (OGC 18-088 §8.2), written once.

Routes, SQL, validation, JSON, the OpenAPI document and the registration of streams derive from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from citylab.tasking_parameters import check_record


class Kind(StrEnum):
    """What a property holds, and in which columns.

    Of a TIME the end is null for an instant; of an INTERVAL both are null when it is unset.
    """

    TEXT = "text"  # text
    JSON = "json"  # jsonb, any value
    OBJECT = "object"  # jsonb, an object
    ARRAY = "array"  # jsonb, an array
    INSTANT = "instant"  # timestamptz
    TIME = "time"  # instant or interval: timestamptz of the start, timestamptz of the end
    INTERVAL = "interval"  # timestamptz of the start, timestamptz of the end
    RESULT = "result"  # float8 where it is a number, jsonb where float8 would not give it back exactly
    QUALITY = "quality"  # jsonb, and a flag of the stream path as smallint


@dataclass(frozen=True, slots=True)
class Property:
    """A property of an entity type.

    required: a create must name it; nullable: null is a value of it; defaulted: the platform gives it a value where
    a create does not; computed: made by the platform, from the table `latest`; kept: written by the platform, into its
    own column; what a client sends for a computed or kept one is ignored; geometry: GeoJSON, which geo functions
    understand; check: of its JSON text, raises ValueError with what is wrong.
    """

    name: str
    kind: Kind
    columns: tuple[str, ...]
    about: str
    required: bool = False
    nullable: bool = False
    defaulted: bool = False
    computed: bool = False
    kept: bool = False
    geometry: bool = False
    check: Callable[[str], None] | None = None

    @property
    def given(self) -> bool:
        """Whether clients give it its value."""
        return not (self.computed or self.kept)

    @property
    def always(self) -> bool:
        """Whether every entity has its key."""
        return self.required or self.nullable or self.defaulted


@dataclass(frozen=True, slots=True)
class LinkTable:
    """The table of a many-to-many relation; `own` refers to this side, `other` to the target.

    rank: the column that gives the targets an order, in which the same target may come twice.
    """

    name: str
    own: str
    other: str
    rank: str = ""


@dataclass(frozen=True, slots=True)
class Narrowing:
    """A small table that says through which entities of the target's to-one `relation` a relation can lead at all.

    For a relation that no index serves: `own` refers to this side, `other` to those entities.
    """

    table: str
    own: str
    other: str
    relation: str


@dataclass(frozen=True, slots=True)
class Either:
    """Of two to-one relations in one column, never null, each entity has one: `other` is the name of the other one.

    holds: SQL of whether an entity has this one, over its columns, each written as `{row}.column`; of_column: the
    same over that column alone, which an index has.
    """

    other: str
    holds: str
    of_column: str


@dataclass(frozen=True, slots=True)
class Relation:
    """A relation as seen from one side.

    column: of a to-one relation, the foreign key on this side's table; of a one-to-many relation, the one on the
    target's; a many-to-many relation has a link table instead. required: a create must name it.
    """

    name: str
    target: str
    inverse: str
    many: bool
    column: str = ""
    link: LinkTable | None = None
    required: bool = False
    narrowed_by: Narrowing | None = None
    either: Either | None = None


@dataclass(frozen=True, slots=True, eq=False)
class EntityType:
    """An entity type: its name, the name of its set, its table, properties and relations in the order of the JSON.

    default_order: columns that give a collection a total order which an index serves.
    Two are equal when they have one name: a service without Tasking has a Thing with fewer relations.
    """

    name: str
    set_name: str
    table: str
    about: str
    properties: Mapping[str, Property]
    relations: Mapping[str, Relation]
    default_order: tuple[str, ...] = ("id",)
    requirement: str = ""  # the part of its requirement URIs that names it: in Part 1 under `datamodel`

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EntityType) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


def _properties(*properties: Property) -> dict[str, Property]:
    return {p.name: p for p in properties}


def _relations(*relations: Relation) -> dict[str, Relation]:
    return {r.name: r for r in relations}


_NAME = Property("name", Kind.TEXT, ("name",), "A label, commonly a descriptive name.", required=True)
_DESCRIPTION = Property("description", Kind.TEXT, ("description",), "A short description.", required=True)
_METADATA = Property(
    "metadata", Kind.JSON, ("metadata",), "A detailed description, or a link to one.", required=True
)
_PROPERTIES = Property("properties", Kind.OBJECT, ("properties",), "Anything else, as a JSON object.")

_COMPUTED = (
    Property(
        "observedArea",
        Kind.JSON,
        ("observed_area",),
        "The area of the features observed, a GeoJSON geometry.",
        computed=True,
        geometry=True,
    ),
    Property(
        "phenomenonTime",
        Kind.INTERVAL,
        ("phenomenon_first", "phenomenon_last"),
        "From the first to the last phenomenonTime of its Observations.",
        computed=True,
    ),
    Property(
        "resultTime",
        Kind.INTERVAL,
        ("result_time_first", "result_time_last"),
        "From the first to the last resultTime of its Observations.",
        computed=True,
    ),
)


def _encoding(of: str) -> Property:
    return Property("encodingType", Kind.TEXT, ("encoding_type",), f"The encoding of `{of}`.", required=True)


_THINGS_LOCATIONS = LinkTable("things_locations", "thing_id", "location_id")
_LOCATIONS_THINGS = LinkTable("things_locations", "location_id", "thing_id")
_HISTORY_LOCATIONS = LinkTable("historical_locations_locations", "historical_location_id", "location_id")
_LOCATIONS_HISTORY = LinkTable("historical_locations_locations", "location_id", "historical_location_id")
_OBSERVED = "multi_datastreams_observed_properties"
_MULTI_DATASTREAMS_PROPERTIES = LinkTable(
    _OBSERVED, "multi_datastream_id", "observed_property_id", rank="rank"
)
_PROPERTIES_MULTI_DATASTREAMS = LinkTable(_OBSERVED, "observed_property_id", "multi_datastream_id")

THING = EntityType(
    "Thing",
    "Things",
    "things",
    "An object of the physical or the information world that can be identified and integrated into networks.",
    _properties(_NAME, _DESCRIPTION, _PROPERTIES),
    _relations(
        Relation("Locations", "Location", "Things", many=True, link=_THINGS_LOCATIONS),
        Relation("HistoricalLocations", "HistoricalLocation", "Thing", many=True, column="thing_id"),
        Relation("Datastreams", "Datastream", "Thing", many=True, column="thing_id"),
        Relation("MultiDatastreams", "MultiDatastream", "Thing", many=True, column="thing_id"),
        Relation("TaskingCapabilities", "TaskingCapability", "Thing", many=True, column="thing_id"),
    ),
    requirement="thing",
)
LOCATION = EntityType(
    "Location",
    "Locations",
    "locations",
    "Where a Thing is, or last was.",
    _properties(
        _NAME,
        _DESCRIPTION,
        _encoding("location"),
        Property(
            "location",
            Kind.JSON,
            ("location",),
            "The place, commonly a GeoJSON geometry.",
            required=True,
            geometry=True,
        ),
        _PROPERTIES,
    ),
    _relations(
        Relation("Things", "Thing", "Locations", many=True, link=_LOCATIONS_THINGS),
        Relation(
            "HistoricalLocations", "HistoricalLocation", "Locations", many=True, link=_LOCATIONS_HISTORY
        ),
    ),
    requirement="location",
)
HISTORICAL_LOCATION = EntityType(
    "HistoricalLocation",
    "HistoricalLocations",
    "historical_locations",
    "When a Thing was at which Locations.",
    _properties(
        Property("time", Kind.INSTANT, ("time",), "When the Thing came to be there.", required=True),
    ),
    _relations(
        Relation("Thing", "Thing", "HistoricalLocations", many=False, column="thing_id", required=True),
        Relation("Locations", "Location", "HistoricalLocations", many=True, link=_HISTORY_LOCATIONS),
    ),
    requirement="historical-location",
)
DATASTREAM = EntityType(
    "Datastream",
    "Datastreams",
    "datastreams",
    "Observations of one ObservedProperty by one Sensor at one Thing.",
    _properties(
        _NAME,
        _DESCRIPTION,
        Property(
            "unitOfMeasurement",
            Kind.OBJECT,
            ("unit_of_measurement",),
            "The unit: `name`, `symbol` and `definition`, each of which may be null.",
            required=True,
        ),
        Property(
            "observationType", Kind.TEXT, ("observation_type",), "The type of its results.", required=True
        ),
        *_COMPUTED,
        _PROPERTIES,
    ),
    _relations(
        Relation("Thing", "Thing", "Datastreams", many=False, column="thing_id", required=True),
        Relation("Sensor", "Sensor", "Datastreams", many=False, column="sensor_id", required=True),
        Relation(
            "ObservedProperty",
            "ObservedProperty",
            "Datastreams",
            many=False,
            column="observed_property_id",
            required=True,
        ),
        Relation("Observations", "Observation", "Datastream", many=True, column="datastream_id"),
    ),
    requirement="datastream",
)
MULTI_DATASTREAM = EntityType(
    "MultiDatastream",
    "MultiDatastreams",
    "multi_datastreams",
    "Observations of several ObservedProperties at once, whose results are arrays in the order of those (§13).",
    _properties(
        _NAME,
        _DESCRIPTION,
        Property(
            "unitOfMeasurements",
            Kind.ARRAY,
            ("unit_of_measurements",),
            "The unit of each element of a result.",
            required=True,
        ),
        Property(
            "observationType",
            Kind.TEXT,
            ("observation_type",),
            "The type of its results; OM_ComplexObservation if it is not given.",
            defaulted=True,
        ),
        Property(
            "multiObservationDataTypes",
            Kind.ARRAY,
            ("multi_observation_data_types",),
            "The type of each element of a result.",
            required=True,
        ),
        *_COMPUTED,
        _PROPERTIES,
    ),
    _relations(
        Relation("Thing", "Thing", "MultiDatastreams", many=False, column="thing_id", required=True),
        Relation("Sensor", "Sensor", "MultiDatastreams", many=False, column="sensor_id", required=True),
        Relation(
            "ObservedProperties",
            "ObservedProperty",
            "MultiDatastreams",
            many=True,
            link=_MULTI_DATASTREAMS_PROPERTIES,
            required=True,
        ),
        Relation("Observations", "Observation", "MultiDatastream", many=True, column="datastream_id"),
    ),
)
SENSOR = EntityType(
    "Sensor",
    "Sensors",
    "sensors",
    "An instrument that observes a property.",
    _properties(
        _NAME,
        _DESCRIPTION,
        _encoding("metadata"),
        _METADATA,
        _PROPERTIES,
    ),
    _relations(
        Relation("Datastreams", "Datastream", "Sensor", many=True, column="sensor_id"),
        Relation("MultiDatastreams", "MultiDatastream", "Sensor", many=True, column="sensor_id"),
    ),
    requirement="sensor",
)
OBSERVED_PROPERTY = EntityType(
    "ObservedProperty",
    "ObservedProperties",
    "observed_properties",
    "What is observed, such as the concentration of NO2.",
    _properties(
        _NAME,
        Property("definition", Kind.TEXT, ("definition",), "The URI that defines it.", required=True),
        _DESCRIPTION,
        _PROPERTIES,
    ),
    _relations(
        Relation("Datastreams", "Datastream", "ObservedProperty", many=True, column="observed_property_id"),
        Relation(
            "MultiDatastreams",
            "MultiDatastream",
            "ObservedProperties",
            many=True,
            link=_PROPERTIES_MULTI_DATASTREAMS,
        ),
    ),
    requirement="observed-property",
)
OBSERVATION = EntityType(
    "Observation",
    "Observations",
    "observations",
    "The act of measuring a property, and its result.",
    _properties(
        Property(
            "phenomenonTime",
            Kind.TIME,
            ("phenomenon_time", "phenomenon_end"),
            "The instant or the interval that the result is of; now if it is not given.",
            defaulted=True,
        ),
        Property(
            "resultTime",
            Kind.INSTANT,
            ("result_time",),
            "When the result was made; may be null.",
            nullable=True,
        ),
        Property(
            "result",
            Kind.RESULT,
            ("result_number", "result_json"),
            "The value.",
            required=True,
            nullable=True,
        ),
        Property("resultQuality", Kind.QUALITY, ("result_quality", "quality"), "How good the result is."),
        Property("validTime", Kind.INTERVAL, ("valid_start", "valid_end"), "When the result may be used."),
        Property("parameters", Kind.OBJECT, ("parameters",), "Circumstances of the observation."),
    ),
    _relations(
        Relation(
            "Datastream",
            "Datastream",
            "Observations",
            many=False,
            column="datastream_id",
            either=Either(
                "MultiDatastream",
                "NOT {row}.multi",
                "{row}.datastream_id NOT IN (SELECT id FROM multi_datastreams)",
            ),
        ),
        Relation(
            "MultiDatastream",
            "MultiDatastream",
            "Observations",
            many=False,
            column="datastream_id",
            either=Either(
                "Datastream", "{row}.multi", "{row}.datastream_id IN (SELECT id FROM multi_datastreams)"
            ),
        ),
        Relation(
            "FeatureOfInterest",
            "FeatureOfInterest",
            "Observations",
            many=False,
            column="feature_of_interest_id",
        ),
    ),
    default_order=("datastream_id", "phenomenon_time", "ordinal"),  # observations_key
    requirement="observation",
)
FEATURE_OF_INTEREST = EntityType(
    "FeatureOfInterest",
    "FeaturesOfInterest",
    "features_of_interest",
    "What was observed: often the place of the Thing.",
    _properties(
        _NAME,
        _DESCRIPTION,
        _encoding("feature"),
        Property(
            "feature",
            Kind.JSON,
            ("feature",),
            "The feature, commonly a GeoJSON geometry.",
            required=True,
            geometry=True,
        ),
        _PROPERTIES,
    ),
    _relations(
        Relation(
            "Observations",
            "Observation",
            "FeatureOfInterest",
            many=True,
            column="feature_of_interest_id",
            narrowed_by=Narrowing("observed_features", "feature_id", "datastream_id", "Datastream"),
        )
    ),
    requirement="feature-of-interest",
)

# OGC 17-079, Part 2: Tasking Core. `status` and `runLog` are those of the Task of SensorThings 2.0 (decision 0013).
ACTUATOR = EntityType(
    "Actuator",
    "Actuators",
    "actuators",
    "A device that can be told to do something.",
    _properties(
        _NAME,
        _DESCRIPTION,
        _encoding("metadata"),
        _METADATA,
        _PROPERTIES,
    ),
    _relations(
        Relation("TaskingCapabilities", "TaskingCapability", "Actuator", many=True, column="actuator_id"),
    ),
    requirement="actuator",
)
TASKING_CAPABILITY = EntityType(
    "TaskingCapability",
    "TaskingCapabilities",
    "tasking_capabilities",
    "What a Thing can be told to do, and which parameters that takes.",
    _properties(
        _NAME,
        _DESCRIPTION,
        Property(
            "taskingParameters",
            Kind.OBJECT,
            ("tasking_parameters",),
            "The parameters of its Tasks: a SWE Common DataRecord (OGC 08-094) in JSON.",
            required=True,
            check=check_record,
        ),
        _PROPERTIES,
    ),
    _relations(
        Relation("Thing", "Thing", "TaskingCapabilities", many=False, column="thing_id", required=True),
        Relation(
            "Actuator", "Actuator", "TaskingCapabilities", many=False, column="actuator_id", required=True
        ),
        Relation("Tasks", "Task", "TaskingCapability", many=True, column="tasking_capability_id"),
    ),
    requirement="tasking-capability",
)
TASK = EntityType(
    "Task",
    "Tasks",
    "tasks",
    "What a Thing is told to do once.",
    _properties(
        Property(
            "creationTime",
            Kind.INSTANT,
            ("creation_time",),
            "When it was created.",
            defaulted=True,
            kept=True,
        ),
        Property(
            "taskingParameters",
            Kind.OBJECT,
            ("tasking_parameters",),
            "A value for each parameter of its TaskingCapability.",
            required=True,
        ),
        Property(
            "status",
            Kind.TEXT,
            ("status",),
            "What became of it, where a gateway carries it out: pending, accepted, running, completed, failed,"
            " rejected or expired.",
            kept=True,
        ),
        Property(
            "runLog",
            Kind.OBJECT,
            ("run_log",),
            "The gateway's last word about it: `at`, and its `message` and `result` if it gave any.",
            kept=True,
        ),
    ),
    _relations(
        Relation(
            "TaskingCapability",
            "TaskingCapability",
            "Tasks",
            many=False,
            column="tasking_capability_id",
            required=True,
        ),
    ),
    requirement="task",
)

EntityTypes = Mapping[str, EntityType]
"""A table of entity types by their names."""

TASKING = (TASKING_CAPABILITY, TASK, ACTUATOR)
ENTITY_TYPES: EntityTypes = {
    t.name: t
    for t in (
        THING,
        LOCATION,
        HISTORICAL_LOCATION,
        DATASTREAM,
        MULTI_DATASTREAM,
        SENSOR,
        OBSERVATION,
        OBSERVED_PROPERTY,
        FEATURE_OF_INTEREST,
        *TASKING,
    )
}
SETS: EntityTypes = {t.set_name: t for t in ENTITY_TYPES.values()}
GEOJSON_ENCODINGS = ("application/geo+json", "application/vnd.geo+json")


def without(*left_out: EntityType) -> EntityTypes:
    """The table without these entity types, and without the relations that lead to them."""
    types = {}
    for t in ENTITY_TYPES.values():
        kept = {name: r for name, r in t.relations.items() if target(r) not in left_out}
        if t not in left_out:
            types[t.name] = t if len(kept) == len(t.relations) else replace(t, relations=kept)
    return types


def target(relation: Relation, types: EntityTypes = ENTITY_TYPES) -> EntityType:
    """The entity type that a relation leads to, in a table."""
    return types[relation.target]
