"""The dashboard in a real browser: what a person sees while a region is cut off, and reaches."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import MakeWorld, make_shared_world, make_world
from tests.real import browser
from tests.real.browser import Browser, running_browser
from tests.waiting import wait_until
from tests.world import HOST, Link, World, documents

__all__ = ["make_shared_world", "make_world"]

HOSTILE = '"><img src=x onerror="document.title=1"><script>document.title=2</script>'
SHOWN_WITHIN_S = 2.0
SLACK_S = 1.0
"""What two busy cores may add to what a node promises."""
SIZES = ((360, 800), (1024, 768), (1920, 1080))


@pytest.fixture(scope="module")
def world(make_shared_world: MakeWorld) -> World:
    return make_shared_world(3).start()


@pytest.fixture(scope="module")
def one_browser() -> Iterator[Browser]:
    if reason := browser.missing():
        pytest.skip(f"no browser: {reason}")
    with running_browser() as running:
        yield running


@pytest.fixture
def page(one_browser: Browser, world: World) -> Iterator[Browser]:
    """The dashboard of the first node; no complaint, and no request to anywhere else."""
    address = f"http://{HOST}:{world.nodes[0].admin_port}/"
    one_browser.console()
    one_browser.requested()
    one_browser.show(address)
    wait_until(lambda: one_browser.attribute("#live", "data-state") == "live", "it is live")
    wait_until(lambda: is_well(one_browser), lambda: one_browser.text("#summary"), 30)
    try:
        yield one_browser
    finally:
        world.heal()
    assert one_browser.console() == []
    hosts = {urlsplit(url).netloc for url in one_browser.requested()}
    assert hosts <= {urlsplit(address).netloc}, hosts


def is_well(page: Browser) -> bool:
    return page.attribute("#summary", "data-state") == "good"


def state_of(page: Browser, key: str) -> str | None:
    return page.attribute(f'[data-key="{key}"]', "data-state")


def test_all_of_it_is_there(page: Browser, world: World) -> None:
    assert page.text("h1") == "node1 us-west-1"
    assert page.text("#headline") == "All 3 nodes are healthy, and all 6 links are up"
    assert len(page.texts(".node[data-key]")) == 3
    assert len(page.texts(".link[data-key]")) == 6
    wait_until(lambda: len(page.texts(".plot .lines path")) == 9, "plots are drawn", 15)
    titles = page.texts("h2")
    for title in ("Regions and links", "Conflicts", "Parked and held", "Collection", "Tenants"):
        assert title in titles


def test_a_region_that_is_cut_off_shows_within_two_seconds_and_comes_back(
    page: Browser, world: World
) -> None:
    links = [link for pair in ("node1", "node3") for link in both_ways(world, "node2", pair)]
    for link in links:
        link.cut()
    took_s = wait_until(
        lambda: (
            state_of(page, "pair us-west-1 eu-central-1") == "cut"
            and state_of(page, "node node2") == "unreachable"
        ),
        lambda: page.text("#summary"),
    )
    print(f"a cut shows after {took_s:.2f} s")
    assert took_s < SHOWN_WITHIN_S + SLACK_S
    wait_until(lambda: "node2 in eu-central-1 does not answer" in page.text("#problems"), "words")
    for number in range(30):
        world.nodes[0].insert(*documents([number]))
    wait_until(lambda: waiting_for(page, "node2") == "30", lambda: waiting_for(page, "node2"))
    world.heal()
    wait_until(lambda: is_well(page), lambda: page.text("#summary"), 40)
    wait_until(lambda: state_of(page, "pair us-west-1 eu-central-1") == "fresh", "healed")


def test_a_link_that_falls_silent_shows_within_two_seconds(page: Browser, world: World) -> None:
    """Nothing breaks and nothing is refused: packets are lost, no more."""
    for link in both_ways(world, "node1", "node2"):
        link.freeze()
    took_s = wait_until(
        lambda: state_of(page, "pair us-west-1 eu-central-1") == "silent",
        lambda: page.text("#summary"),
    )
    print(f"silence shows after {took_s:.2f} s")
    assert took_s < SHOWN_WITHIN_S + SLACK_S
    world.heal()
    wait_until(lambda: is_well(page), lambda: page.text("#summary"), 40)


def test_a_page_that_has_lost_its_node_says_so_and_comes_back(page: Browser, world: World) -> None:
    node = world.nodes[0]
    node.kill()
    wait_until(lambda: page.attribute("#live", "data-state") == "lost", "it says so")
    assert page.text("#lost").startswith("No connection to this node since ")
    node.start()
    wait_until(lambda: page.attribute("#live", "data-state") == "live", "live again", 30)
    wait_until(lambda: is_well(page), lambda: page.text("#summary"), 40)
    assert page.attribute("#lost", "hidden") == ""
    # What the browser says of the requests that nobody answered.
    assert all("ERR_" in line for line in page.console())


def test_what_somebody_writes_into_a_tuple_is_text(page: Browser, world: World) -> None:
    us, eu, _ = world.nodes
    world.cut()
    wait_until(lambda: us.metric("targets_connected") == 0, "apart")
    one = {"resource": f"document:{HOSTILE.replace(' ', '')}", "relation": "viewer"}
    for node, condition in ((us, HOSTILE), (eu, "plain")):
        tuples = [{**one, "subject": "user:mallory", "condition": {"text": condition}}]
        answer = node.post_here("/access/v1/relationships/write", {"relationships": tuples})
        assert answer.status == 200, answer
    world.heal()
    world.settle()
    wait_until(lambda: page.texts(".conflicts article"), "the conflict shows", 30)
    shown = "".join(page.texts(".conflicts article"))
    assert "<img" in shown
    assert "<script>" in shown
    assert page.ask("return document.querySelectorAll('main img, main script').length") == 0
    assert "node1 · sidecar" in page.ask("return document.title")
    sides = page.texts(".conflicts article:first-child .version")  # the newest
    assert len(sides) == 2
    assert sum("winner" in side for side in sides) == 1
    wait_until(lambda: is_well(page), lambda: page.text("#summary"), 40)


def test_a_person_gets_everywhere_with_the_keyboard(page: Browser) -> None:
    """The map is one stop; inside, arrow keys lead over every node and every link."""
    tab, right, end, escape = "\ue004", "\ue014", "\ue010", "\ue00c"
    page.ask("document.activeElement.blur()")

    def focused() -> str:
        return str(page.ask(FOCUSED))

    press = page.driver.find_element("tag name", "body").send_keys
    press(tab)
    assert focused() == "skip"
    page.press(tab)
    assert focused() == "node node1"
    met = [focused()]
    for _ in range(8):
        page.press(right)
        met.append(focused())
    assert len(set(met)) == 9
    assert met[3].startswith("pair ")
    wait_until(lambda: "lag" in page.text("#detail"), "the details of a link are shown")
    name = page.ask("return document.activeElement.getAttribute('aria-label')")
    assert "up to date" in name
    page.press(right)
    assert focused() == "node node1"
    page.press(end, escape)
    wait_until(lambda: "This deployment" in page.text("#detail"), "details are closed")
    stops = []
    for _ in range(6):
        page.press(tab)
        stops.append(focused())
    assert stops[0] == "SUMMARY", stops
    assert stops[1:5] == ["plot"] * 4
    page.ask("document.querySelector('.plot').focus()")
    page.press("\ue012")
    wait_until(lambda: "UTC" in page.text("#plot-traffic figcaption"), "the time is said")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(
    one_browser: Browser, world: World, size: tuple[int, int], scheme: str
) -> None:
    """No side to scroll to, and a contrast of text that WCAG calls AA."""
    one_browser.prefer(color_scheme=scheme)
    one_browser.show(f"http://{HOST}:{world.nodes[0].admin_port}/", *size)
    wait_until(lambda: is_well(one_browser), lambda: one_browser.text("#summary"), 30)
    width = one_browser.ask("return document.documentElement.scrollWidth")
    assert width <= size[0]
    poor = one_browser.ask(CONTRAST)
    assert poor == []


FOCUSED = """
const one = document.activeElement;
return one.dataset.key ?? (one.getAttribute('class') || one.id || one.tagName);
"""
CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
function rgba(text) {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].map((part) => part / 255);
}
function luminance([r, g, b]) {
  const part = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
}
function ground(one) {
  for (; one; one = one.parentElement) {
    const color = rgba(getComputedStyle(one).backgroundColor);
    if (color[3] > 0.99) return color;
  }
  return [1, 1, 1, 1];
}
const poor = [];
for (const one of document.querySelectorAll('body *')) {
  const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const isLeftOut = one.closest('.hidden, .skip, noscript, script');
  if (!own || isLeftOut || !one.getClientRects().length) continue;
  const style = getComputedStyle(one);
  const text = rgba(one instanceof SVGElement ? style.fill : style.color);
  const [a, b] = [luminance(text), luminance(ground(one))].sort((x, y) => y - x);
  const contrast = (a + 0.05) / (b + 0.05);
  if (contrast < 4.5) poor.push(`${one.textContent.trim().slice(0, 40)}: ${contrast.toFixed(2)}`);
}
return [...new Set(poor)];
"""


def both_ways(world: World, one: str, other: str) -> list[Link]:
    return [world.link(one, other), world.link(other, one)]


def waiting_for(page: Browser, target: str) -> str:
    """The backlog in the table of links from the first node to a target."""
    rows = page.ask(
        "return [...document.querySelectorAll('#links tbody tr')]"
        ".map((row) => [...row.children].map((cell) => cell.textContent))"
    )
    return next((str(row[4]) for row in rows if row[:2] == ["node1", target]), "")


def test_nothing_moves_for_who_does_not_want_it(one_browser: Browser, world: World) -> None:
    one_browser.prefer(reduced_motion="reduce")
    one_browser.show(f"http://{HOST}:{world.nodes[0].admin_port}/")
    wait_until(lambda: one_browser.attribute("#live", "data-state") == "live", "it is live")
    moving = one_browser.ask("return document.getAnimations().length")
    one_browser.prefer()
    assert moving == 0
