import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.sensorthings.errors import RequestError
from api.sensorthings.resource import read_resource


def test_paths_of_one_shape_differ_only_in_their_ids():
    one, other = (
        read_resource("/Things(5)/Datastreams(77)/Observations"),
        read_resource("Things(1)/Datastreams(2)/Observations/"),
    )
    assert one.shape == other.shape == "Things()/Datastreams()/Observations"
    assert (one.ids, other.ids) == ((5, 77), (1, 2))
    assert one.entity_type.name == "Observation"
    assert not one.steps[-1].single


def test_properties_members_and_values():
    resource = read_resource("/Observations(1)/Datastream/unitOfMeasurement/symbol/$value")
    assert resource.of_property is not None
    assert (resource.of_property.name, resource.members, resource.value) == (
        "unitOfMeasurement",
        ("symbol",),
        True,
    )
    resource = read_resource("/Things(1)/properties/a%5B1%5D%5B2%5D/b")
    assert (resource.members, resource.key) == (("a", 1, 2, "b"), "b")
    assert read_resource("/Things(1)/properties/a[1]").key == "a[1]"
    assert read_resource("/Things(1)/@iot.id").of_id
    assert read_resource("/Things/$ref").reference


@pytest.mark.parametrize(
    "path",
    ["", "/", "Thing", "Things(", "Things)", "Things(1", "Things(1))", "Things(1)(2)", "Things(01x)", "Things(1)/",
     "Things(1)/name/$value/x", "Things(1)/$value", "Things/name", "Things(1)/Locations/name", "Things(1)//name"],
)  # fmt: skip
def test_what_names_nothing(path):
    if path == "Things(1)/":
        assert read_resource(path).ids == (1,)
        return
    with pytest.raises(RequestError) as error:
        read_resource(path)
    assert error.value.status in {404, 501}


@given(
    st.lists(
        st.sampled_from(
            [
                "Things",
                "Things(1)",
                "Datastreams",
                "Thing",
                "name",
                "$ref",
                "$value",
                "properties",
                "a[0]",
                "%FF",
                "(",
                "[",
                "x",
            ]
        ),
        max_size=6,
    )
    | st.text(max_size=30).map(lambda t: [t])
)
def test_no_path_breaks_the_reader(segments):
    assert refusal("/".join(segments)) in {None, 404, 501}


def refusal(path):
    """The status with which a path is refused, None if it is not."""
    try:
        read_resource(path)
    except RequestError as error:
        return error.status
    return None
