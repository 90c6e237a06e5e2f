"""The phrase book behind `synthetic.py`: what bank customers ask, what the bank answers, what its policies say.

One template a line. `(a|b|)` chooses one branch, an empty branch drops it; branches nest. `{slot}` is filled by
`synthetic.SLOTS`, the same value each time within one ticket; a digit (`{amount2}`) asks for a second value.
`[word/word]` before a line of a reply keeps it for concerns in which one of the words begins, and there it goes \
first.
All prose was written for this project. Banks, merchants and people are invented.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One situation of a customer: ways to ask, details that may follow, first sentences of the reply."""

    short: tuple[str, ...]
    asks: tuple[str, ...]
    details: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    """All material of one intent. `glossary` maps each domain term to a sentence that defines it."""

    subject: str
    area: str
    calm: bool
    glossary: dict[str, str]
    cases: tuple[Case, ...]
    steps: tuple[str, ...]
    rules: tuple[str, ...]


def _lines(text: str) -> tuple[str, ...]:
    return tuple(" ".join(line.split()) for line in text.strip().splitlines())


# Values of slots.
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
CITIES = (
    "Leeds", "Bristol", "Dublin", "Cork", "Lyon", "Nantes", "Utrecht", "Ghent", "Porto", "Graz", "Basel", "Turin",
    "Malmo", "Aarhus", "Tampere",
)  # fmt: skip
TRIPS = (
    "Norway", "Japan", "Canada", "Brazil", "Morocco", "Turkey", "Iceland", "Mexico", "Vietnam", "Kenya",
    "Thailand", "Chile", "Croatia",
)  # fmt: skip
NAMES = (
    "Anna", "Ben", "Clara", "David", "Elena", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Karin", "Liam", "Mira",
    "Nadia", "Oscar", "Petra", "Quentin", "Rosa", "Samir", "Tessa", "Ugo", "Vera", "Wim", "Yara", "Zoe",
)  # fmt: skip
SHOPS = (
    "Pinecrest Grocers", "Oakline Furniture", "Quayside Coffee House", "Ferrant Garage", "Velodrift Cycles",
    "Pagewell Books", "Skyhopper Travel", "Tallow Street Pharmacy", "Lanternbay Hotel", "Copperkettle Kitchenware",
    "Zestgarden Market", "Bluefin Electronics", "Threadmill Fashion", "Sunnyfield Petrol", "Orchard Lane Toys",
)  # fmt: skip
MERCHANTS = (  # they collect by direct debit
    "Brightfold Energy", "Kestrovel Mobile", "Nimbora Streaming", "Ironpatch Gym", "Mossgreen Insurance",
    "Hollowell Water", "Papermoon Magazines", "Tidegate Internet", "Rowanfield Nursery", "Larkspur Dental Plan",
)  # fmt: skip
BANKS = ("Northquay Bank", "Tallis Savings", "Ostermere Bank", "Veldan Direct", "Castelline Credit", "Pendrake Mutual")
PAYEES = (
    "my landlord", "my sister", "my brother", "my flatmate", "our supplier", "my builder", "my mother",
    "the school", "the dentist", "our accountant", "my daughter", "a friend", "the tax office", "the car dealer",
    "my cousin",
)  # fmt: skip
PLACES = (
    "on the bus", "in a taxi", "at the gym", "on the train", "in a restaurant", "at the airport", "on the beach",
    "in the supermarket", "at a concert", "at the station", "in a hotel", "at the petrol station", "at the market",
)  # fmt: skip
STREETS = ("Willow Lane", "Mill Road", "Harbour Street", "Station Road", "Chestnut Avenue", "Church Hill", "Canal Walk")
AGO = (
    "yesterday", "last night", "this morning", "two days ago", "three days ago", "on Saturday",
    "over the weekend", "last week", "an hour ago", "on Monday", "a week ago", "earlier today",
)  # fmt: skip
CURRENCIES = (
    "US dollars", "Swiss francs", "Swedish kronor", "Polish zloty", "Japanese yen", "British pounds",
    "Canadian dollars", "Czech koruna", "Norwegian kroner", "Turkish lira",
)  # fmt: skip
WAITS = ("three days", "four days", "a week", "ten days", "two weeks", "almost a month")
SMALL_COUNTS = ("two", "three", "four", "five", "seven", "ten")

TOPICS: dict[str, Topic] = {
    "card_lost": Topic(
        subject="lost and stolen cards",
        area="cards",
        calm=False,
        glossary={
            "card block": "A card block stops every payment and cash withdrawal on a card from the moment it is set.",
            "replacement card": "A replacement card has a new number and takes the place of a card that was lost.",
            "liability limit": "The liability limit is the most a customer can lose before a loss is reported.",
            "emergency cash": "Emergency cash is money that a partner branch abroad pays to a customer without a card.",
        },
        cases=(
            Case(
                short=_lines("""
                    (Lost|Misplaced|Dropped) my (debit |bank |credit |)card {place}(, please block it|, what now|, \
                    help|)
                    (Cannot|Can't) find my card ending {card}(, block it| anywhere|)
                    Card (gone|lost|missing) since {date}(, please|,) (freeze|block|stop) it
                    (Please |)(freeze|block|stop) card {card}, (I lost it|it is gone|left it {place})
                    My (debit |bank |)card (went missing|disappeared|was stolen) {ago}
                    """),
                asks=_lines("""
                    I lost my (debit|bank|credit) card {place} {ago} and (would like you to block it|need it blocked).
                    My card ending {card} is (no longer in my wallet|nowhere to be found), (can|could) you \
                    (block|freeze) it (before someone uses it|straight away|until I have looked everywhere)?
                    What (do I have|am I supposed|am I meant) to do when a card has been (left behind|lost) {place}?
                    I (left|forgot) my card {place} {ago} and when I (went back|asked), (it was gone|nobody had \
                    seen it).
                    Somewhere between {shop} and (home|the station|the office) I (must have dropped|seem to have \
                    lost) my card, (please stop it|so please make sure nobody can pay with it).
                    I need (a new card|another card) because (the old one|mine|the one ending {card}) \
                    (disappeared|went missing|was left behind) {place}.
                    (My son|My daughter|My husband|My wife) (took|borrowed) my card {ago} and (lost|forgot) it \
                    {place}.
                    My (purse|wallet|bag) was stolen {place} {ago}, (with the card ending {card} in it|and my bank \
                    card was inside).
                    (Can|Could) you (freeze|lock) my card for (a day|now)? I (probably left it|may have left it) \
                    {place}.
                    """),
                details=_lines("""
                    The last thing I (paid|bought) with it was (lunch|petrol|groceries|a ticket), {amount} at {shop}.
                    I have (already |)(looked|searched) (in every coat|in the car|under the seats) and \
                    (asked|called) (the lost property office|the driver|at the desk) (twice|several times).
                    The PIN was not (written down|kept) with it, (luckily|thank goodness).
                    (So far|As far as I can see) there is no payment on the (account|statement) that I did not make.
                    I am (travelling|away) in {trip} until {date} and (have no other card|have hardly any cash left).
                    It is (also |)the card that (my rent is|my subscriptions are|my {merchant} contract is) tied to.
                    I noticed it only when I (wanted|tried) to pay (at {shop2}|for dinner|for the parking).
                    """),
                answers=_lines("""
                    (A|The) card block (is active now|has been set|is in place), and a replacement card will reach \
                    you within {days} working days.
                    We have set a card block on the card ending {card} and ordered a replacement card.
                    I have (placed|set) a card block, so (no one can pay|nobody can pay or withdraw cash) with the \
                    card from now on.
                    As you are away in {trip}, we can arrange emergency cash at a partner branch and send the \
                    replacement card (to your hotel|to your home).
                    You reported it in time, so your liability limit is €50 for any payment before the card block.
                    [stolen]Because you have reported the theft, your liability limit is €50 for anything paid \
                    before the card block.
                    [stolen]The card block is set, and once you have a police report we will send the replacement \
                    card free of charge.
                    [for a day/for now/looked everywhere]I have frozen the card for {hours} hours; if it does not \
                    turn up, we make it a card block and send a replacement card.
                    """),
            ),
            Case(
                short=_lines("""
                    New card (ordered|requested) {ago}, (still |)not (here|arrived)
                    (Where is|When comes) the replacement for (my lost card|card {card})?
                    Lost card reported {ago}, (no new one yet|where is the new one)?
                    Found my (lost|missing) card {ago}, (can I use it|unblock it please|what now)?
                    """),
                asks=_lines("""
                    I reported my card (lost|stolen) {ago}, and the new one (has still not arrived|is not here yet).
                    How (long|many days) (will I have to|do I have to|must I) wait for the card that replaces the \
                    one I lost {place}?
                    The card I (lost|had reported missing) {ago} has (turned up|been handed in) {place}, (can I use \
                    it again|what should I do with it)?
                    You blocked the card ending {card} after I lost it, (but nobody told me|and now I wonder) when \
                    the next one comes.
                    Will the card you send in place of my (lost|stolen) one (have the same number|keep the same PIN)?
                    Someone found my card {place} and (gave|handed) it back to me, is it (still blocked|safe to use)?
                    """),
                details=_lines("""
                    I was promised it (within a week|for {date}), and (that has passed|I have heard nothing since).
                    (Meanwhile|Until then) I have to (borrow cash|pay everything by transfer), which is \
                    (awkward|tiresome).
                    My (subscription|contract) with {merchant} (asks for|needs) the new card number by {date}.
                    (The postman|Our letterbox) is (not very reliable|shared with the neighbours), so I am a bit \
                    uneasy.
                    I (would rather|could also) collect it (at the branch|in {city}) (if that is faster|myself).
                    """),
                answers=_lines("""
                    The replacement card was posted {days} days ago, so it should reach you very soon.
                    We have sent a second replacement card by courier (at no charge|free of charge), which takes \
                    {days} working days.
                    [found/turned up/handed]A card block after a loss is final, so please cut the old card in two \
                    and use the replacement card.
                    [found/turned up/handed]Please do not use the card that was found, because the card block \
                    cannot be lifted any more.
                    [same]The replacement card carries a new number but your old PIN.
                    [how long/how many/when]Your replacement card takes {days} working days, and until it comes a \
                    digital copy is ready in the app.
                    """),
            ),
        ),
        steps=_lines("""
            The card block does not touch your account, so (transfers|standing orders) (continue|go on) as usual.
            Please (look through|check) your latest payments and (report|tell us about) any you do not recognise.
            You can add the digital card to your phone (today|at once) and pay with it.
            Merchants that hold your card number, (such as|for example) subscriptions, will need the new one.
            If the card was stolen, please (also |)(report it to the police|file a report) and keep the reference.
            (There is no fee|We charge nothing) for the new card this time.
            If you need money before the card comes, we can pay out emergency cash at any partner branch.
            """),
        rules=_lines("""
            A customer who loses a card should block it at once, (in the app|by phone|at any branch), at any hour \
            of the day.
            Once a card block is set, no payment, withdrawal or contactless purchase can be made with the card.
            A replacement card is (printed|produced) on the next working day and arrives within {days} working days.
            Until a loss is reported, the customer's share of any misuse ends at the liability limit of €50.
            After a loss is reported, the bank (carries|bears) all further damage, unless the customer acted with \
            intent.
            (Keeping|Writing) the PIN together with the card counts as gross negligence, and the liability limit \
            then no longer protects the customer.
            Customers who (lose|are robbed of) their card abroad may ask for emergency cash of up to €1,000.
            If a missing card is found after it was reported stolen, it must be destroyed and not used again.
            A temporary freeze suits a card that was probably left at home, while a card block is permanent.
            The new card keeps the old PIN, so that there is one thing less to remember.
            Direct debits and standing orders are tied to the account, not to the card, and so a lost card does not \
            stop them.
            When a customer says that a card went missing {place}, ask first whether the PIN was kept with it.
            Courier delivery costs {fee}, and it is free when the card was stolen.
            """),
    ),
    "card_declined": Topic(
        subject="declined card payments",
        area="cards",
        calm=False,
        glossary={
            "authorisation hold": "An authorisation hold reserves money for a card payment until it is booked.",
            "issuer decline": "An issuer decline is a refusal by the customer's own bank, not by the shop.",
            "merchant terminal": "A merchant terminal is the device in a shop that reads a card and asks for approval.",
            "strong customer authentication": "Strong customer authentication asks for two proofs of identity.",
        },
        cases=(
            Case(
                short=_lines("""
                    Card (declined|refused|rejected) at {shop}(, why|, please check|)?
                    (Can't|Cannot) pay (with my card|by card) (at {shop}|today)
                    My card (does not work|keeps failing|was refused) at (the till|{shop})
                    {amount} at {shop} (refused|declined|not accepted), why
                    Payment (refused|declined) {ago}, (there is|enough) money on account
                    """),
                asks=_lines("""
                    My card was (declined|refused) at {shop} {ago} although there is (enough|plenty of) money on \
                    the account.
                    Why (can|could) I not pay {amount} at {shop} (with my card|by card)?
                    I (tried|wanted) to pay {amount} at {shop} and the (terminal|machine) (said no|showed an \
                    error|refused) (twice|three times).
                    (Can|Could) you (find out|explain|tell me) why the card ending {card} is (rejected|turned \
                    down|not accepted) (everywhere|in every shop) since {date}?
                    I stood at the till (of|in) {shop} with (a full trolley|a queue behind me) and my card (would \
                    not go through|was turned down).
                    Is there (something wrong|a problem) with my card? It (failed|was declined) at {shop} {ago}.
                    The card reader at {shop} (did not accept|kept rejecting) my card, but (my husband's|a \
                    friend's) (worked|went through) (at once|fine).
                    The (payment|purchase) of {amount} (did not go through|failed) and I had to (pay cash|leave \
                    everything behind).
                    """),
                details=_lines("""
                    The balance (was|is) well above {amount}, I checked it (in the app|on my phone) (right there|at \
                    once).
                    The PIN was (right|correct), I have used the same one for years.
                    Contactless (failed|did not work) and (inserting the card|the chip) (failed|did not work) either.
                    (Yesterday|The day before) the same card worked (without trouble|perfectly) at {shop2}.
                    The (cashier|shop assistant) said the refusal came from (my bank|your side).
                    It was (embarrassing|rather unpleasant), (there were people behind me|I was with clients).
                    I have not lost the card (and|,) nobody else uses it.
                    Now {amount} (shows|appears) as (reserved|pending) even though (the shop got nothing|I paid in \
                    cash).
                    """),
                answers=_lines("""
                    The payment of {amount} met an issuer decline because the daily card limit had been reached.
                    The merchant terminal at {shop} lost its connection, so the request never reached us.
                    An authorisation hold from an earlier purchase had reserved part of your balance, which led to \
                    the refusal.
                    It was an issuer decline set by our (security|fraud) check, and I have now released your card.
                    The chip of your card could not be read by the merchant terminal, so we will send you a new card.
                    [something wrong/everywhere/keeps]The card had met an issuer decline three times and was \
                    paused; it is free again now.
                    """),
            ),
            Case(
                short=_lines("""
                    My online payment (at {shop} |)was (declined|refused|rejected)(, why|)
                    {shop} website (does not take|rejects|refuses) my card
                    (Card|Payment) (fails|refused) abroad in {trip}(, urgent|, help|)
                    Card works in shops, (not online|fails on websites)
                    """),
                asks=_lines("""
                    I cannot pay online at {shop}, the (confirmation|approval) (never arrives|fails) on my phone.
                    My card (gets|is) (refused|declined) on every website since (I have a new phone|{date}).
                    I am in {trip} and my card (is declined|does not work) in (every shop|restaurants and at cash \
                    machines).
                    The order over {amount} at {shop} (was|got) cancelled because the bank did not \
                    (approve|authorise) it.
                    Do I have to (tell you|announce it) before I (travel|go) to {trip}? My card was \
                    (refused|declined) there {ago}.
                    Why does (the app|your app) (not ask|never ask) me to confirm, so that the purchase at {shop} \
                    is (never finished|declined)?
                    """),
                details=_lines("""
                    I changed my (phone|number) (last week|in {month}) and (perhaps|maybe) that is the reason.
                    In a normal shop the card (works|is accepted) (every time|without problems).
                    I (have tried|tried) (two browsers|another website) and (a different device|my tablet) too.
                    The (hotel|rental car) (needs|wants) {amount} as a deposit (by tonight|before {date}).
                    (Another|My other) card from {bank} (worked|was accepted) (at once|in the same place).
                    """),
                answers=_lines("""
                    It was an issuer decline set by a security rule, which I have now changed for you.
                    [{trip}]Payments in {trip} met an issuer decline because the card was set to home use only; \
                    this is now changed.
                    [{trip}]You need not announce a trip to {trip}, but the region must be switched on, or an \
                    issuer decline follows.
                    [online/website/confirm]Online payments need strong customer authentication, and your phone is \
                    not registered for it yet.
                    [online/website/confirm/order]The purchase failed because strong customer authentication was \
                    not completed in five minutes.
                    [website/order]We see an issuer decline after a wrong security code was entered, so please try \
                    the purchase again.
                    """),
            ),
        ),
        steps=_lines("""
            Please try (the card|it) again (in ten minutes|now), with the chip and PIN the first time.
            You can (see and change|raise) the card limits in the app under (Cards|Card settings).
            If it happens again, note the time and the shop, and we will trace the request.
            Any reserved amount is freed without your doing anything.
            Please make sure that the app may show notifications, as the approval arrives there.
            (I am sorry|We regret) that this happened (at the till|in public).
            """),
        rules=_lines("""
            A card payment is declined for one of four reasons: too little money, a limit, a security check or a \
            technical fault.
            An issuer decline comes from the bank, and the reason is shown in the app within a minute.
            When a merchant terminal loses its connection, the bank never sees the request and cannot explain the \
            refusal.
            An authorisation hold lowers the available balance, though the money has not left the account yet.
            Hotels and petrol stations often place an authorisation hold that is higher than the final bill.
            A hold that the merchant does not claim lapses after {days} days.
            Strong customer authentication is required for online purchases above €30 and for every new subscription.
            A customer with a new phone must register it before strong customer authentication works again.
            If a card is refused abroad, check the region settings first and the limit second.
            Three refusals in a row make our security system pause the card until the customer confirms the payments.
            A damaged chip shows itself when contactless works and the inserted card does not.
            Staff should never ask a customer to read the PIN aloud in order to find the cause of a declined payment.
            """),
    ),
    "transfer_pending": Topic(
        subject="pending and delayed transfers",
        area="payments",
        calm=False,
        glossary={
            "SEPA": "SEPA is the area of European countries in which euro transfers follow the same rules.",
            "cut-off time": "The cut-off time is the hour after which an order counts as given the next day.",
            "value date": "The value date is the day from which an amount counts for interest and for the balance.",
            "payment screening": "Payment screening compares a transfer with sanctions lists before it is sent.",
        },
        cases=(
            Case(
                short=_lines("""
                    (Transfer|Payment) to {payee} (still |)(pending|not arrived|missing)
                    Where is (my transfer|my {amount}|the money for {payee})?
                    {amount} sent {ago}, (nothing arrived|not there yet|still pending)
                    (Money|Transfer) stuck for {wait}(, why|, please check|)
                    {payee} (did not get|has not received) my {amount}
                    """),
                asks=_lines("""
                    I (sent|transferred) {amount} to {payee} {ago} and it (has not arrived|is still pending).
                    My transfer (of {amount} |)to {payee} has been (pending|in progress|stuck) for {wait}(, is that \
                    normal|, what is going on)?
                    Where is the money (now |)that I (sent|transferred) to {payee} on {date}?
                    {payee} (tells me|says|insists) that the {amount} I sent {ago} never (came|arrived|showed up).
                    How long does a transfer to {bank} (take|need)? I (made|ordered) one {ago} and (see|hear) nothing.
                    The app (still |)(says|shows) pending for the {amount} I sent {ago}, (yet|but) my balance is \
                    already lower.
                    (Can|Could) you (check|trace|find) a payment of {amount} to {payee}? It left my account on {date}.
                    I (paid|sent) an invoice of {amount} {ago} and the (recipient|supplier) (threatens with a \
                    reminder|is still waiting).
                    """),
                details=_lines("""
                    The account number (is right|was correct), I (copied|took) it from (the invoice|an earlier \
                    payment).
                    The amount has (gone from|left) my account, so it must be somewhere.
                    Normally this takes (one day|a few hours), I have (paid|sent) money to the same account before.
                    I pressed send (late in the evening|just before midnight|on my way home) (if that matters|, in \
                    case that matters).
                    It is for (the rent|the deposit on a flat|a used car|school fees), so (it cannot wait|it matters).
                    {payee} (calls|writes to|asks) me every day (now|about it).
                    I thought of paying (the rest |)by card, but that is not possible there.
                    There was no (error|warning) (message |)and no (hint|word) about a limit when I confirmed it.
                    """),
                answers=_lines("""
                    Your order came after the cut-off time of {cutoff}, so the transfer leaves on the next working \
                    day.
                    The payment of {amount} is in payment screening and will be released within {hours} hours.
                    The transfer was sent through SEPA on {date}, so the other bank should credit it by tonight.
                    We found your {amount}: payment screening had held it, and it has just been released.
                    [how long]A SEPA transfer takes up to one working day, or two when it was ordered after the \
                    cut-off time.
                    [check/trace/where]The transfer left us through SEPA with yesterday's value date, and the other \
                    bank has confirmed it.
                    """),
            ),
            Case(
                short=_lines("""
                    Money (expected|promised) from {payee} (not here|has not come)
                    (Salary|Wages|Pension) not (here|on my account) yet, (why|what happened)?
                    Sent {amount} to (the wrong account|a wrong number), (stop it|help)
                    (Recall|Stop|Cancel) my transfer of {amount} please
                    """),
                asks=_lines("""
                    I am (waiting for|expecting) {amount} from {payee}, sent {ago}, (and it is not here|but I see \
                    nothing).
                    My salary (should have arrived|was due) on {date} and my account (shows nothing|is empty).
                    I (mistyped|got wrong) the account number and sent {amount} to (a stranger|the wrong person) \
                    {ago}.
                    (Can|Could) you call back the transfer of {amount} that I (sent|made) {ago} (by mistake|too \
                    early)?
                    The transfer from {bank} was (announced|promised) for {date}, (where is it|why is it not booked)?
                    Is it (still |)possible to (stop|cancel) a pending transfer to {payee}? I (sent|ordered) it {ago}.
                    """),
                details=_lines("""
                    I have a (screenshot|confirmation) (from the sender|of the order) if you need one.
                    The (rent|mortgage payment) (is due|leaves) on {date} and (needs|depends on) this money.
                    The status was (pending|in progress) when I last looked(, so there may be time|).
                    (I rang|I called) the other bank and they (sent me back|referred me) to you.
                    The reference on it is the (invoice number|word rent), in case you search for it.
                    """),
                answers=_lines("""
                    We are looking into it, and the value date will tell us where the money is.
                    [waiting for/expect/salary/wages/pension/promised/announced]No payment for you is waiting in \
                    payment screening, so please ask the sender for the value date.
                    [waiting for/expect/salary/wages/pension/promised/announced]The incoming payment reached us \
                    after the cut-off time and will be booked with the value date of today.
                    [wrong/mistyped/call back/recall]We have started a SEPA recall for the {amount}, and the \
                    receiving bank has {days} working days to answer.
                    [wrong/mistyped/call back/recall]A SEPA recall is on its way, but the recipient must agree to \
                    return the money.
                    [cancel/stop]A transfer that is still pending can be cancelled in the app until the cut-off \
                    time of {cutoff}.
                    """),
            ),
        ),
        steps=_lines("""
            Please wait until (tomorrow evening|the next working day) and write again if nothing has changed.
            We can open a trace under reference {ref}, which costs nothing.
            The state of every payment is shown in the app under Payments.
            Instant transfers arrive within ten seconds, at any hour.
            Please do not order anything again, as it would then be paid twice.
            """),
        rules=_lines("""
            A transfer is pending from the moment it is ordered until the bank has sent it out.
            Orders given before the cut-off time of {cutoff} leave on the same day, later ones on the next working \
            day.
            Within SEPA, a transfer in euros must reach the other bank by the end of the next working day.
            The value date, not the hour at which a customer looks at the app, decides from when an amount counts.
            About one transfer in a hundred is held in payment screening, for the most part because a name \
            resembles one on a list.
            Payment screening takes up to {hours} hours, and the bank may not tell the customer why it happened.
            A pending transfer can be cancelled in the app, while one that has left needs a recall.
            In a recall the recipient must agree to return the money, and so the bank cannot promise success.
            Transfers outside SEPA pass through correspondent banks and need {days} working days.
            If a salary is late, the employer should first confirm the value date and the account number.
            Customers often report that the balance is lower although the payment is still pending; the amount is \
            reserved, not lost.
            An instant transfer does not know weekends or a cut-off time.
            """),
    ),
    "transfer_limit": Topic(
        subject="transfer limits",
        area="payments",
        calm=True,
        glossary={
            "daily limit": "The daily limit is the highest sum that can be transferred from an account in one day.",
            "two-factor approval": "Two-factor approval confirms an order with a second device or with a code.",
            "trusted payee list": "The trusted payee list holds recipients to whom larger sums may be sent.",
            "waiting period": "A waiting period delays a higher limit, so that a thief cannot use it at once.",
        },
        cases=(
            Case(
                short=_lines("""
                    (Raise|Increase|Lift) my (transfer|payment) limit to {large}
                    Need to (send|transfer) {large}, (limit too low|app refuses|how)?
                    Limit (exceeded|reached) (when sending|for) {large} to {payee}
                    How can I (send|transfer) more than {limit2}?
                    """),
                asks=_lines("""
                    I have to (transfer|send) {large} to {payee} and the app (says|tells me) that this is \
                    (over|above) my limit.
                    (Can|Could) you (raise|increase) my transfer limit to {large} (until {date}|for one day|for \
                    this week)?
                    Why (can|may) I not send more than {limit2} (a day|at once)? It is my own money.
                    I am buying a (car|flat|boat|kitchen) and (need|have) to pay {large} (in one sum|by transfer) \
                    on {date}.
                    How do I (change|set|raise) the maximum for (online transfers|payments to {payee})?
                    My transfer of {large} (was|got) (rejected|refused) because (of the limit|the maximum is \
                    {limit2}).
                    Is there a way to (send|pay) {large} on (one|the same) day, or do I have to (split it|come to \
                    the branch)?
                    The notary (wants|needs) {large} by {date}, but (your app|online banking) (only lets me|will \
                    not let me) (send {limit2}|send that much).
                    """),
                details=_lines("""
                    (After that|Afterwards) you can (put it back|lower it again) to what it was.
                    The money is (there|on the account), so it is not a matter of the balance.
                    I (tried|wanted) to split it into (three|four) parts, (but that was refused too|which takes days).
                    The recipient has an account at {bank} and I have paid (there|them) before.
                    (With my card|By card) I can spend (more than that|almost as much), which (makes no sense|seems \
                    odd).
                    It is a (genuine|real) payment, I (know|have met) the seller (in person|and have a contract).
                    The transfer is not pending, it (is refused|fails) the moment I confirm it.
                    """),
                answers=_lines("""
                    Your daily limit is {limit}, and I can raise it to {large} once you confirm by two-factor \
                    approval.
                    If you add the recipient to your trusted payee list, the {large} can be sent in one transfer.
                    For a single day we can lift the daily limit, provided that you confirm it with two-factor \
                    approval.
                    [how do/how can]You can raise the daily limit in the app, and it takes effect after a waiting \
                    period of {hours} hours.
                    [why]The daily limit protects you from theft, and a higher one starts after a waiting period of \
                    {hours} hours.
                    """),
            ),
            Case(
                short=_lines("""
                    (What is|How high is) my (transfer|daily transfer) limit?
                    (Lower|Reduce|Cut) my transfer limit to {limit2} please
                    Want a (lower|smaller) limit for online transfers
                    Limit change (from {ago} |)(not active|still not working)
                    """),
                asks=_lines("""
                    (Please lower|I would like to lower) the amount that can be (sent|transferred) per day to \
                    {limit2}.
                    What is the (highest|largest) amount I (can|may) transfer (in a day|online|by phone)?
                    I changed my limit {ago}, but the app (still|even now) (shows|uses) the old one.
                    For (safety|peace of mind) I want nobody to be able to (send|transfer) more than {limit2} from \
                    (my|our) account.
                    Does the limit (count|apply) per transfer or per day, and (do standing orders count|does it \
                    include my card)?
                    (My mother|My father) is (elderly|eighty-two), and (I would like|we want) a lower maximum for \
                    transfers from (their|the family) account.
                    """),
                details=_lines("""
                    I read about (fraud|people being tricked on the phone) and (want to be careful|got thinking).
                    (I hardly ever|We never) (send|pay) more than {amount} (anyway|at once).
                    The setting in the app is (greyed out|hard to find).
                    A higher one for {payee} (would be fine|can stay), just not for strangers.
                    (Last year|In {month}) it was {limit3}, as far as I (remember|can tell).
                    """),
                answers=_lines("""
                    Your daily limit is {limit} at present, and it can be changed in the app.
                    [what is/how high]Your daily limit is {limit}, for all transfers of one day together.
                    [count/apply]The daily limit adds up all transfers of one day, while standing orders and card \
                    payments are not counted.
                    [lower/reduce/cut/smaller/nobody]A lower daily limit is active at once; only an increase has a \
                    waiting period.
                    [lower/reduce/cut/smaller/nobody]Your daily limit is now reduced, and recipients on the trusted \
                    payee list keep their own limit.
                    [changed/limit change]The change was not confirmed by two-factor approval, so the old daily \
                    limit still holds.
                    """),
            ),
        ),
        steps=_lines("""
            You find the setting in the app under (Payments|Security), then Limits.
            Please have (your phone|your code generator) at hand for the confirmation.
            The limit returns to its old value (at midnight|after {days} days) by itself.
            In a branch we can send any amount on the same day, with your identity card.
            (Please remember|Note) that the card has a limit of its own.
            """),
        rules=_lines("""
            Every account has a daily limit for transfers, which is {limit} unless the customer has chosen another.
            The daily limit adds up all online transfers of one calendar day, including those that are still pending.
            An increase of the limit needs two-factor approval, and it starts after a waiting period of {hours} hours.
            A customer can lower the limit at any time, and the lower limit holds at once.
            Payments to recipients on the trusted payee list do not count towards the daily limit up to {large}.
            The waiting period exists because thieves who enter an account try to raise the limit first.
            For the purchase of a home or a car, customers should ask for a higher limit some days before the payment.
            Two colleagues must approve a transfer above {large} that is ordered in a branch.
            Standing orders and direct debits are not limited, because they were approved when they were set up.
            If someone on the phone urges a customer to raise a limit, it is almost always an attempt at fraud.
            Business accounts may give each employee a limit, with two-factor approval by a second person above it.
            A transfer above the limit is refused at once and never shown as pending.
            """),
    ),
    "direct_debit_dispute": Topic(
        subject="disputed direct debits",
        area="payments",
        calm=False,
        glossary={
            "direct debit mandate": "A direct debit mandate is the permission by which a company may collect money.",
            "refund right": "The refund right lets a customer take back a direct debit for eight weeks.",
            "creditor identifier": "The creditor identifier is the number that names the company behind a collection.",
            "unauthorised collection": "An unauthorised collection is a direct debit that nobody allowed.",
        },
        cases=(
            Case(
                short=_lines("""
                    {merchant} (took|collected|debited) {amount} (without asking|twice|again)
                    (Return|Reverse|Refund) the {merchant} direct debit(, please|)
                    (Wrong|Unknown|Strange) direct debit (of {amount}|from {merchant}|on {date})
                    {merchant} (charged|debited) too much, {amount}
                    Direct debit {amount} not (mine|agreed|authorised)
                    """),
                asks=_lines("""
                    {merchant} (took|collected) {amount} from my account {ago} and I (never agreed to it|cancelled \
                    months ago).
                    I want (the direct debit|the {amount}) from {merchant} (back|returned|reversed).
                    (Can|Could) you (reverse|send back) the {amount} that {merchant} (debited|collected) on {date}?
                    A company called {merchant} has (collected|debited) {amount}, (and I have no contract with \
                    them|which I have never heard of).
                    The {merchant} bill was not {amount}, yet that is what (was|has been) (debited|taken).
                    {merchant} (debited|collected) the same {amount} twice (in one week|this month|on {date}).
                    How do I (dispute|contest) a direct debit? {merchant} (took|helped itself to) {amount} {ago}.
                    I cancelled my contract with {merchant} in {month} and they (still|keep) (collect|collecting) \
                    every month.
                    """),
                details=_lines("""
                    I have the (cancellation|confirmation) (in writing|by e-mail), and I can send (it|you a copy).
                    (I called|I wrote to) them (twice|three times) and (nobody answers|they just put me on hold).
                    Because of it (my rent could not be paid|I am now overdrawn|I paid an overdraft fee).
                    It is not a card payment, it (says|reads) direct debit on the statement.
                    (Please also|And please) make sure that they cannot (collect|take) anything (again|any more).
                    The reference is a (long number|customer number) that (means nothing to me|I do not know).
                    I only saw it (now|today) because I was checking (the statement|my savings|the balance).
                    """),
                answers=_lines("""
                    We have returned the {amount} under your refund right, and it is back on the account with \
                    today's date.
                    Within eight weeks the refund right needs no reason, so the debit has been sent back.
                    [how do i]Within eight weeks you can use your refund right in the app, and the {amount} is back \
                    at once.
                    [twice]One of the two debits was an unauthorised collection, and we have returned it.
                    [never/not mine/not agreed/not authorised/unknown/strange/without]Without a direct debit \
                    mandate this is an unauthorised collection, which you may dispute for 13 months.
                    [never/not mine/not agreed/not authorised/unknown/strange/without]I have asked {merchant} for a \
                    copy of the direct debit mandate; without one, the money is yours again.
                    [cancelled my contract/cancelled months]The direct debit mandate ended with your contract, so \
                    we have blocked the creditor identifier of {merchant}.
                    """),
            ),
            Case(
                short=_lines("""
                    (Block|Stop) all direct debits (from|by) {merchant}
                    (Cancel|Withdraw) my permission for {merchant} to collect
                    {merchant} debit (bounced|returned|failed), why did (it|that) happen?
                    (Who|Which company) collected {amount} on {date}?
                    """),
                asks=_lines("""
                    I (want to|would like to) (withdraw|cancel) the permission that {merchant} has to collect money \
                    from me.
                    (Can|Could) you block {merchant} so that they (cannot|can no longer) debit my account?
                    The direct debit from {merchant} was (returned|not paid) {ago} although I (wanted|meant) to pay \
                    it.
                    Who is behind the (collection|debit) of {amount} on {date}? The name (is cut off|tells me \
                    nothing).
                    {merchant} says that (you|my bank) refused their direct debit of {amount}, and now they want a \
                    fee.
                    Which companies (may|are allowed to) collect from my account? I (lost track|want to clear them \
                    up).
                    """),
                details=_lines("""
                    I switched (the contract|from {merchant}) to another (provider|company) (in {month}|last year).
                    The next collection (comes|is due) on {date}, so (it would be good to act before|please act by \
                    then).
                    I would rather pay by (standing order|transfer) (in future|from now on).
                    There was (certainly|definitely) enough (money|balance) on that day.
                    The gym was fine, but the (small print|renewal) was not.
                    """),
                answers=_lines("""
                    You can see every direct debit mandate in the app and stop each of them with one tap.
                    [withdraw/cancel/block/stop]We have recorded that the direct debit mandate of {merchant} is \
                    withdrawn, and further debits are refused.
                    [returned/bounced/failed/refused/not paid]The collection was refused because your block list \
                    holds this creditor identifier; I have taken it off.
                    [returned/bounced/failed/refused/not paid]The debit came without a valid direct debit mandate, \
                    and so our system sent it back.
                    [who /which company ]The creditor identifier shows which company it was, and you see it in the \
                    app under the booking.
                    """),
            ),
        ),
        steps=_lines("""
            Please (also |)write to the company, because a returned debit does not end the contract.
            If it comes again, you can return it yourself in the app, under the booking.
            Any overdraft interest that this caused will be refunded too.
            The block stays in place for {months} months and can be lifted in the app.
            The company has {days} working days to show its proof.
            """),
        rules=_lines("""
            A company may collect money by direct debit only when the customer has signed a direct debit mandate.
            The refund right runs for eight weeks from the booking, and the customer need not give a reason.
            For an unauthorised collection, a dispute is possible for 13 months.
            The bank returns a disputed direct debit first and asks the company afterwards.
            A returned direct debit does not cancel the contract behind it, so the customer should also write to \
            the company.
            The creditor identifier tells companies with similar names apart, and it appears on every collection.
            Customers can block a single creditor identifier, all direct debits, or amounts above a limit of their \
            own.
            If a company collects twice, only one of the two debits should be returned.
            A direct debit mandate that has not been used for 36 months lapses.
            When a collection fails for lack of money, the company may charge a fee, but the bank does not.
            A direct debit is started by the company, whereas a standing order is started by the customer.
            A dispute about a card payment follows other rules and belongs to the cards team.
            """),
    ),
    "mortgage_rate": Topic(
        subject="mortgage rates",
        area="lending",
        calm=True,
        glossary={
            "fixed rate": "A fixed rate stays the same for an agreed number of years.",
            "variable rate": "A variable rate follows the market and may change every quarter.",
            "loan-to-value": "Loan-to-value is the mortgage divided by the price of the home, in per cent.",
            "annual percentage rate": "The annual percentage rate is the yearly cost of a loan, fees included.",
            "rate lock": "A rate lock keeps an offered rate for some weeks while the papers are prepared.",
        },
        cases=(
            Case(
                short=_lines("""
                    (Current|Today's) mortgage rate for {years} years?
                    (Best|Your) rate for a mortgage of {home}?
                    What (does|would) a {home} mortgage cost (today|per month)?
                    Mortgage rate with {percent} (deposit|own money)?
                    """),
                asks=_lines("""
                    What (is|would be) the rate for a mortgage of {home} (over|fixed for) {years} years?
                    We (are looking at|have found|want to buy) a (flat|house) in {city} and need (a mortgage of \
                    {home}|about {home}).
                    (Can|Could) you (give|send) me an offer for a mortgage? The (house|flat) costs {home} and we \
                    (have|bring) {percent} of our own.
                    {bank} offers (us|me) {rate} for {years} years, (can you match it|can you do better)?
                    Is it (wise|better) to fix the (interest|rate) for {years} years or to (stay flexible|wait \
                    until rates fall)?
                    How much (would|does) a loan for a house of {home} cost us (each|per) month?
                    I (read|heard) that home loans have become (cheaper|dearer), what (are you asking|is your rate) \
                    (at the moment|right now)?
                    How long is your mortgage offer of {rate} (valid|good for)? The seller (needs until {date}|is \
                    slow).
                    """),
                details=_lines("""
                    Both of us (work|have permanent jobs), and there are no other loans (apart from the car|).
                    The (seller|agent) wants an answer by {date}.
                    We have {large} in savings (that we could add|, which we would rather keep).
                    It is (our first home|to live in ourselves|a place to let out).
                    A higher deposit is possible if it (changes|improves) the interest.
                    I would (like to|prefer to) be able to repay a bit extra (each year|now and then) without a \
                    charge.
                    (On your website|In the app) the calculator shows {rate2}, is that realistic?
                    """),
                answers=_lines("""
                    Today the fixed rate for {years} years is {offer}, at a loan-to-value of up to 80 per cent.
                    With a lower loan-to-value the fixed rate falls to {offer}, so a higher deposit would help.
                    Our variable rate is {offer} at present, which gives an annual percentage rate slightly above it.
                    [{percent}]With {percent} of your own money, the loan-to-value allows a fixed rate of {offer}.
                    [how long]We can offer a rate lock of {days} weeks, so that the fixed rate stays while you decide.
                    [offers]Please compare the annual percentage rate of both offers, as it includes all fees; ours \
                    is {offer}.
                    [wise/better to]The fixed rate protects you from rising interest, while the variable rate lets \
                    you repay at any time.
                    """),
            ),
            Case(
                short=_lines("""
                    My mortgage fix (ends|runs out) {date}, (what next|new rate)?
                    (Switch|Change) my mortgage from variable to fixed
                    Mortgage (rate|instalment) went up, (why|please explain)?
                    (Renew|Extend) my mortgage rate before {date}
                    """),
                asks=_lines("""
                    The (interest|rate) on my mortgage of {home} is fixed until {month}, what (happens|comes) after \
                    that?
                    I (would like|want) to (switch|move) my mortgage to a fixed interest, now it (is|stands at) \
                    {rate}.
                    Why has the (instalment|monthly payment) on our house (gone up|risen) by {amount}?
                    You (raised|changed) the interest on my home loan to {rate} {ago}, (how is that worked out|why)?
                    Can I (secure|keep) today's rate for the (renewal|extension) of my mortgage in {month}?
                    Our (mortgage|home loan) still runs for {years} years, (can|could) we get a (lower|better) \
                    interest on it?
                    """),
                details=_lines("""
                    The outstanding amount is (about|roughly) {home2}.
                    The value of the house has (gone up|risen) a good deal since we bought it.
                    I got a letter (about it {ago}|full of numbers) and (did not understand it|could not follow it).
                    My (neighbour|brother) pays {rate2} (at {bank}|elsewhere).
                    We (do not plan|have no plans) to repay early or to sell.
                    """),
                answers=_lines("""
                    With today's value of your home, the loan-to-value is lower, so a better fixed rate is possible.
                    [fixed until/fix ends/fix runs]When the fixed rate ends, the loan moves to the variable rate of \
                    {offer} unless you choose a new term.
                    [switch/move/change my]You can change from the variable rate to a fixed rate of {offer} at the \
                    end of each quarter, free of charge.
                    [gone up/risen/went up/raised/changed the]Your variable rate follows the market, which rose, \
                    and so the new annual percentage rate is {offer}.
                    [secure/keep/renew/extend]A rate lock lets you keep today's fixed rate of {offer} until the \
                    renewal.
                    """),
            ),
        ),
        steps=_lines("""
            (An adviser|A colleague) can work out the monthly payment with you (by video|in the branch|on the phone).
            Please have your last three payslips ready.
            This is not a binding offer, as it depends on our check of your income.
            The calculator in the app shows the plan for every month.
            You would receive a written offer within {days} working days.
            """),
        rules=_lines("""
            Mortgage rates are set every morning and depend on the term, the deposit and the value of the home.
            A fixed rate gives a steady payment, and a variable rate can rise or fall each quarter.
            The lower the loan-to-value, the lower the rate, because the bank carries less risk.
            At a loan-to-value above 90 per cent, the bank asks for a second security.
            The annual percentage rate is the fair way of comparing two offers, since it includes every fee.
            A rate lock costs nothing for the first {days} weeks.
            Three months before a fixed rate ends, the customer receives an offer for the time after it.
            A customer who does not answer the renewal offer moves to the variable rate on the next day.
            Buyers should plan for payments of no more than a third of their income.
            A mortgage of {home} at {offer} over {years} years is a typical request from a family.
            Extra payments of up to five per cent a year are free, even with a fixed rate.
            Savings interest and mortgage rates move together, though not on the same day.
            """),
    ),
    "overdraft_fee": Topic(
        subject="overdraft fees",
        area="lending",
        calm=False,
        glossary={
            "overdraft limit": "The overdraft limit is the amount by which an account may go below zero.",
            "unarranged overdraft": "An unarranged overdraft arises when an account falls below the agreed limit.",
            "debit interest": "Debit interest is the price of an overdraft, counted for each day below zero.",
            "goodwill refund": "A goodwill refund gives back a fee that was charged correctly.",
        },
        cases=(
            Case(
                short=_lines("""
                    (Why|What) (did you charge|is) {small} for overdraft?
                    Overdraft (fee|charge|interest) {small}, (please refund|why|not ok)
                    (Refund|Return|Cancel) the {small} overdraft (fee|charge)
                    Charged {small} for (one|two) days in the red
                    {small} overdraft fee in {month}, (explain please|unfair)
                    """),
                asks=_lines("""
                    Why (have I been|was I) charged {small} for (the overdraft|being overdrawn) in {month}?
                    I was (overdrawn|in the red|below zero) for (one day|two days|a weekend) and you took {small}.
                    (Please|Could you please) (refund|give back|cancel) the fee of {small} for going below zero {ago}.
                    You charged me {small} because (a transfer|my salary) came (a day|some hours) late.
                    The statement (shows|lists) {small} of overdraft charges, (how is that worked out|what is this \
                    for)?
                    My account went to minus {amount} when {merchant} (collected|debited), and now there is a fee \
                    of {small}.
                    I do not (see|understand) why I (must|should) pay {small} when there was (money on my savings \
                    account|{large} on my other account).
                    How can a minus of {amount} cost {small}? That is (daylight robbery|a lot|more than I expected).
                    """),
                details=_lines("""
                    Nobody (warned|told) me (beforehand|that the balance was low).
                    My salary (arrived|came) on {date}, one day after the (rent|card bill) (left|was booked).
                    It has (never happened before|not happened in years), (ask anyone|as you can see|).
                    A direct debit (came|was taken) earlier than (usual|announced), which I could not know.
                    {small2} may be little for you, (for me it is not|but it is the principle).
                    The card should (just |)have been declined (then|instead).
                    I (moved|transferred) money {ago} but it was pending over the weekend.
                    """),
                answers=_lines("""
                    The {small} is debit interest for the days on which the account was below zero.
                    Debit interest is counted per day and booked at the end of the quarter, which is why you see it \
                    only now.
                    The account went beyond its overdraft limit, and an unarranged overdraft costs {offer} more in \
                    interest.
                    [refund/give back/cancel/return]Since it was the first time, I have booked a goodwill refund of \
                    {small} to your account.
                    [refund/give back/cancel/return/late]A goodwill refund is possible once a year, and you \
                    will see the {small} by tomorrow.
                    """),
            ),
            Case(
                short=_lines("""
                    (What|How much) does (an|my) overdraft cost (per day|a month)?
                    (Need|Want) a (bigger|higher) overdraft, {limit2}
                    (Set up|Give me) an overdraft of {limit2}
                    (Remove|Cancel|Reduce) my overdraft (please|completely)
                    """),
                asks=_lines("""
                    What (would|does) an overdraft of {limit2} cost (me |)(per month|for {wait})?
                    I (would like|want) to (raise|increase) my overdraft to {limit2}, what (fee|interest) \
                    (comes|goes) with it?
                    (Can|Could) you (remove|switch off) the overdraft, so that I (never|do not) pay these charges \
                    again?
                    How do I avoid the charges for (being overdrawn|a minus) at the end of the month?
                    From (which|what) amount on do you (charge|ask for) overdraft interest, and is there a \
                    (free|interest-free) part?
                    I have been in the minus since {month} and the charges (eat me up|add up), what (are|would be) \
                    my options?
                    """),
                details=_lines("""
                    My income (varies|goes up and down), and some months are (tight|thin).
                    The current one was set (in {year}|years ago), when I earned (less|more).
                    A (small |)loan might be cheaper, (I suppose|perhaps).
                    I get paid on {date}, and the big bills come (before|a few days earlier).
                    I only want it for (emergencies|the summer), not as a habit.
                    """),
                answers=_lines("""
                    Within the overdraft limit the debit interest is {offer} a year, so a few days cost very little.
                    [raise/increase/bigger/higher/set up/give me]We can raise your overdraft limit if your salary \
                    has come in for three months.
                    [raise/increase/bigger/higher/set up/give me]An overdraft limit of {limit2} is possible, with \
                    debit interest of {offer} a year.
                    [remove/switch off/cancel/reduce]Your overdraft limit is now zero, though a late card booking \
                    may still lead to an unarranged overdraft.
                    [avoid]A balance alarm in the app keeps you from debit interest, and it warns you before the \
                    account reaches zero.
                    [options]For a lasting minus, an instalment loan is far cheaper than debit interest.
                    """),
            ),
        ),
        steps=_lines("""
            You can set a balance alarm in the app, which warns you below €50.
            If you wish, an automatic transfer from savings can keep the account above zero.
            The first {fee} below zero are free of charge each month.
            We can also move the day of a standing order to the day after your salary.
            The exact days are listed on the quarterly statement.
            """),
        rules=_lines("""
            An overdraft is a short loan on a current account, and it costs debit interest from the first day.
            The overdraft limit is agreed in writing and is checked once a year.
            An unarranged overdraft is dearer than one within the limit, and the bank may refuse payments at any time.
            Debit interest is worked out per day and charged at the end of each quarter.
            A customer who pays the fee for the first time may ask for a goodwill refund.
            The bank sends a warning when the balance falls below €50.
            Nobody is charged for being below zero by less than {fee}.
            When a fee was caused by the bank's own mistake, it is refunded in full and without a request.
            If a customer lives in the overdraft for more than three months, the adviser should propose a cheaper \
            loan.
            Students have an overdraft limit of €500 free of debit interest in their first year.
            Most overdraft fees happen because a direct debit is taken shortly before the salary arrives.
            A refused card payment costs nothing, whereas a payment that is let through can lead to an overdraft fee.
            """),
    ),
    "account_closure": Topic(
        subject="closing an account",
        area="accounts",
        calm=False,
        glossary={
            "closing balance": "The closing balance is what remains on an account when it is closed.",
            "switching service": "The switching service moves standing orders and direct debits to another bank.",
            "final statement": "The final statement lists the last bookings and the interest up to the day of closing.",
            "notice period": "The notice period is the time between a cancellation and the end of the contract.",
        },
        cases=(
            Case(
                short=_lines("""
                    (Please |)(close|cancel|terminate) my (account|current account) (by {date}|today|now)
                    (Want|Need) to (close|end|cancel) my account, (how|please help|what now)?
                    (Leaving|Moving) to {bank}, (close|cancel) my account
                    How (can|do) I close my account (online|here|in the app)?
                    """),
                asks=_lines("""
                    I (would like|want) to close my account (by|on) {date}, (please tell me how.|what do you need \
                    from me?)
                    (Please |Kindly )close my (current|second|old) account and (send|transfer) the rest to my \
                    account at {bank}.
                    I am (moving|switching) to {bank} and no longer need (my|the) account with you.
                    What (happens|will happen) to my (direct debits|standing orders|card) when I (close|give up) \
                    the account?
                    We are (moving|emigrating) to {trip} in {month} and (would like|want) to end our \
                    (contract|accounts) with you.
                    My (father|mother|aunt) died in {month} and the account has to be closed, (how do we do \
                    that|what is needed)?
                    After (the fee of {small}|what happened {ago}) I have had enough, please (close \
                    everything|cancel my account).
                    I (opened|have) two accounts and (use|need) only one, (so please close the other.|can the \
                    second be cancelled?)
                    """),
                details=_lines("""
                    There (is|should be) (still |)about {amount} on it.
                    I have (cut up|destroyed) the card already.
                    My salary (already |)goes to {bank} since {month}.
                    The new (bank|one) (charges no fees|pays better interest), (to be honest|frankly).
                    I (need|would like) a written confirmation (for my records|for the tax office).
                    The mortgage was never with you, so (there is|that leaves) nothing else to settle.
                    Do I have to (come to the branch|sign something) or is this message enough?
                    """),
                answers=_lines("""
                    There is no notice period for you, so the account can be closed as soon as its balance is zero.
                    The account will be closed on {date}, and the closing balance goes to the account you named.
                    We will close the account at the end of the month and send you the final statement.
                    With the switching service, {bank} takes over your standing orders and direct debits within \
                    {days} days.
                    [what happens/what will]The switching service moves your regular payments, the card stops on \
                    the last day, and a final statement follows.
                    [died]We need the certificate of inheritance, and we will then pay out the closing balance to \
                    the heirs.
                    [how can/how do i/account, how]Please confirm the request in the app, and tell us where to send \
                    the closing balance.
                    """),
            ),
            Case(
                short=_lines("""
                    Account closed, where is (my money|the remaining {amount})?
                    (Still|Again) charged for (a closed|my closed) account
                    Account (should be|was to be) closed {ago}, still open
                    Why (did|have) you (closed|close) my account?
                    """),
                asks=_lines("""
                    I closed my account {ago} and (the rest of|the remaining) {amount} (has not arrived|is missing) \
                    at {bank}.
                    My account should have been closed (on {date}|{ago}), but (it is still open|I still get letters \
                    about it).
                    You (took|charged) {small} for an account that I (closed|cancelled) in {month}.
                    I got a letter that you (will|want to) (close|terminate) my account, (why|what have I done)?
                    (Can|Could) I (stop|undo) the closing of my account? I (asked|wrote) {ago} and (changed my \
                    mind|acted too fast).
                    I (closed|gave up) my account in {month} and (now need|am missing) the last papers for the tax \
                    office.
                    """),
                details=_lines("""
                    I gave you the new account number (on the form|in the branch|in writing).
                    A refund from {merchant} is (still |)on its way to the old account.
                    (I was|They) assured (me |)at the branch that it (was done|takes a week).
                    The card (is|has been) (cut up|returned), and the app no longer lets me in.
                    The (switch|move) to {bank} (went|was) smooth otherwise.
                    """),
                answers=_lines("""
                    I have looked it up, and the final statement with all details reaches you within {days} working \
                    days.
                    [where is/remaining/rest of]The closing balance was sent {days} days ago, and the final \
                    statement shows the account it went to.
                    [charged/took]The fee was booked with the final statement by mistake, and we return it with the \
                    closing balance.
                    [should/was to be]A pending card payment delayed the closing, and the final statement will be \
                    sent this week.
                    [undo/i stop]As the notice period is still running, I have withdrawn the request and your \
                    account stays open.
                    [got a letter/why did/why have]A signed form is missing, and if it arrives within the notice \
                    period, the account stays open.
                    """),
            ),
        ),
        steps=_lines("""
            Please (settle|pay back) any overdraft first, since an account below zero cannot be closed.
            Payments that arrive later are sent back to the sender for {months} months.
            Please cut up the card when the account has ended.
            Statements of the last ten years can be ordered even after the closing.
            Please download what you need from the app before {cutoff} on the last day.
            """),
        rules=_lines("""
            A private customer can close a current account at any time, without a notice period and without a fee.
            For business accounts, the notice period is one month to the end of a month.
            The account must not be overdrawn, and pending card payments must be booked before it is closed.
            The closing balance is transferred to an account that the customer names, or paid out in a branch.
            With the switching service, the new bank asks for a list of standing orders and direct debits.
            The switching service takes {days} working days, and both banks are liable for mistakes.
            A final statement is sent within two weeks after the closing and includes interest up to the last day.
            If a customer has died, the heirs close the account with a certificate of inheritance.
            Joint accounts can be closed only when all holders agree.
            The bank itself may close an account with a notice period of two months, and it must explain why on \
            request.
            Cards stop working on the day the account is closed, and they should be cut in two.
            A customer who wants to leave because of a fee should be asked whether a refund would change the decision.
            """),
    ),
    "fraud_report": Topic(
        subject="fraud and disputed payments",
        area="cards",
        calm=False,
        glossary={
            "chargeback": "A chargeback takes a card payment back when goods or consent were missing.",
            "phishing": "Phishing is an attempt to obtain passwords or codes with forged messages.",
            "provisional credit": "A provisional credit is money lent to a customer while a dispute is examined.",
            "transaction dispute": "A transaction dispute is a customer's statement that a payment is not theirs.",
            "police report": "A police report is the official record of a crime, and it carries a number.",
        },
        cases=(
            Case(
                short=_lines("""
                    (Did not|Didn't) (make|authorise) a payment of {amount} (at|to) {shop}
                    (Someone|Somebody) (used|paid with) my card at {shop}
                    (Unknown|Strange) (payment|transaction) of {amount}, (not mine|not me|help)
                    Fraud on my (card|account), {amount} (gone|taken|stolen)
                    {amount} to {shop} (was not me|is not mine)
                    """),
                asks=_lines("""
                    There is a payment of {amount} to {shop} (on my card|on my statement) that I (did not make|do \
                    not recognise).
                    (Someone|Somebody) (has|must have) used my card (number |)(online|in {trip}): {amount} at \
                    {shop}, {ago}.
                    I (see|found) (three|four|two) payments to {shop} that are not mine, {amount} (in \
                    total|altogether).
                    My card is (here|in my wallet), yet somebody (paid|spent) {amount} with it in {trip} {ago}.
                    (Please|You must) (look into|investigate) the {amount} that left my account {ago}, (it was not \
                    me|I approved nothing).
                    I want to dispute (a charge|a card payment) of {amount} (at|from) {shop}, (I was never there|it \
                    is not mine).
                    I (ordered|bought) something from {shop} for {amount}, (nothing came|it was a fake shop), and \
                    now they (do not answer|are gone).
                    My account has been plundered: {amount} in (several|small) payments to {shop}.
                    """),
                details=_lines("""
                    I (have blocked|blocked) the card in the app (at once|a minute later), but the money is gone.
                    I was (at work|asleep|at home) (at that time|when it happened) and can prove it.
                    Nobody (else |)(has|knows) my PIN or (uses|touches) my card.
                    It is still pending, so (perhaps|maybe) you can stop it.
                    I (have|had) never (bought|ordered) anything (there|from them) in my life.
                    First there was a (tiny|small) test payment of {small}, then the big one.
                    (I can go to the police, if that helps.|Should I go to the police, or do you do that?)
                    """),
                answers=_lines("""
                    I have opened a transaction dispute for the {amount} and blocked the card.
                    A provisional credit is booked today, while the transaction dispute is examined.
                    We will ask {shop} for a chargeback, and you get a provisional credit within {hours} hours.
                    Please send us the police report, so that the transaction dispute can be decided in your favour.
                    [i ordered/i bought]As the goods never came, a chargeback is the right way, and we have filed \
                    it with {shop}.
                    """),
            ),
            Case(
                short=_lines("""
                    Got a (text|call|message) (claiming to come from|from) your bank, is it (real|genuine|you)?
                    (Clicked|I clicked) a (fake|strange) link {ago}(, help|, what now|)
                    (Gave|I told) my code to a (caller|stranger) {ago}
                    (Scam|Fake) (mail|call) in your name {ago}
                    """),
                asks=_lines("""
                    I (got|received) (a message|an e-mail|a text) in your name that asks me to (confirm my \
                    card|enter my PIN|log in), (is it real|did you send it)?
                    I (clicked|tapped) on a link {ago} and (entered|typed in) my (password|card number), (now I \
                    think|only then I saw) it was a fake page.
                    A man (called|rang) {ago}, said he was from (your security team|the bank) and (made|had) me \
                    approve {amount}.
                    (Someone|A woman) on the phone told me to move {large} to a safe account, and I (did it|nearly \
                    did it).
                    I (gave|read out) a code to a caller {ago} and (now|since then) I (cannot log in|see a new \
                    device in the app).
                    (My mother|My father|My grandmother) was tricked (on the phone|at the door) into sending \
                    {amount} to a stranger.
                    """),
                details=_lines("""
                    The number (on the display|that called) (looked like|was) yours.
                    They knew my (address|name) and the last digits of my card, {card}.
                    (Since then|So far) I (have seen|see) nothing (else|more) that looks strange.
                    I changed my password (right away|an hour later).
                    I feel (so |rather |)stupid, I am normally (careful|the one who warns others).
                    """),
                answers=_lines("""
                    We have blocked your card and your online access, and a transaction dispute can be opened for \
                    any strange payment.
                    [clicked/tapped/gave /code]This was phishing, and we have blocked your online access to keep \
                    your money safe.
                    [is it/in your name]That message was phishing and did not come from us, so please do not enter \
                    anything.
                    [nearly]It was phishing of a known kind, as no bank has safe accounts, and you did well to stop.
                    [i did it/approve/tricked]We have asked the other bank to hold the money, and we need a police \
                    report to get it back.
                    [i did it/approve/tricked]A transaction dispute is open, and thanks to your message a part of \
                    the money is already frozen.
                    """),
            ),
        ),
        steps=_lines("""
            We never ask for a PIN, a password or a code, neither by phone nor by e-mail.
            Please change your password from a (clean|different) device.
            The examination takes up to {days} working days, and you will be told of the outcome.
            Keep all (messages|e-mails and receipts), because they serve as proof.
            Please tell us at once if another payment appears that you do not know.
            We also look at earlier payments for signs of the same thief.
            """),
        rules=_lines("""
            A customer who does not recognise a payment should block the card first and report the payment second.
            A transaction dispute must reach the bank within 13 months of the booking.
            The bank pays a provisional credit by the end of the next working day unless it suspects intent.
            A chargeback is possible when goods never arrived, when a shop charged twice, or when nobody gave consent.
            In a chargeback the merchant has {days} weeks to answer, and silence counts as agreement.
            Phishing messages create pressure: they threaten a blocked account and offer a link as the way out.
            The bank never asks for a PIN, a password or an approval over the phone.
            Losses above €500 need a police report, and smaller ones can be settled without it.
            Thieves often try a card with a tiny amount before they make a large payment.
            A customer who was tricked should never be blamed; ask what happened, in which order, and when.
            No bank has safe accounts to which customers must move their savings.
            If a payment is still pending, it cannot be disputed yet, but the card can be blocked already.
            A payment under an unknown name is not always fraud, as many shops book under the name of their owner.
            """),
    ),
    "statement_request": Topic(
        subject="account statements and certificates",
        area="accounts",
        calm=True,
        glossary={
            "account statement": "An account statement lists all bookings of a period and both balances.",
            "transaction history": "The transaction history in the app shows bookings as they happen.",
            "balance certificate": "A balance certificate confirms on paper how much an account held on a certain day.",
            "document archive": "The document archive keeps statements and letters in the app for ten years.",
        },
        cases=(
            Case(
                short=_lines("""
                    (Need|Send me) my (account |bank |)statement for {month}
                    Statements for {year} (please|needed|as PDF)
                    (Where|How) do I (find|get) the statement for {month}?
                    (Bank statement|Statement) {month} {year} (missing|not there|please)
                    """),
                asks=_lines("""
                    (Can|Could) you (send|e-mail) me the statement for {month} (as a PDF|on paper)?
                    I need (all statements|every statement) (of|for) {year} for (my tax return|the tax office|my \
                    accountant).
                    Where (do I find|can I see|do I download) the statements (of|for) {month}?
                    My landlord (wants|asks) to see my (bank |)statements (of the last three months|from {month} on).
                    The statement for {month} is (missing|not shown) (in the app|in online banking).
                    I (would like|need) a list of all card payments and transfers (between {month} and now|in {year}).
                    For (a visa|a loan at {bank}|a rental contract) I (have to show|need) what came in and went out \
                    since {month}.
                    How far back can I (see|go) in the app? I am looking for a payment (from|in) {year}.
                    """),
                details=_lines("""
                    (It must|They must) show my full name and (the account number|the stamp of the bank).
                    The deadline is {date}, so (I am a bit late|it is fairly urgent).
                    I (only need|need only) the pages with (the salary|the payment of {amount}).
                    A screenshot (was not accepted|is not enough) (there|for them).
                    (I do not use|My parents do not use) the app, so (paper|a letter) would be best.
                    I (have|had) the old card number ending {card} back then, (if that helps|in case you need it).
                    What does (a copy|it) cost, if it costs anything?
                    """),
                answers=_lines("""
                    Each account statement is ready as a PDF in the document archive of the app.
                    The account statement for {month} has been placed in your document archive today.
                    [{year}]Every account statement of {year} is in the document archive, one PDF for each month.
                    [on paper]I have ordered the account statement on paper, and it reaches you within {days} \
                    working days.
                    [how far]The transaction history goes back 24 months, and older bookings are found in the \
                    document archive.
                    [a list/came in]The transaction history can be exported from the app as a table, for any period \
                    you choose.
                    [missing/not shown/not there]An account statement is made on the first working day of a month, \
                    and yours has been added now.
                    """),
            ),
            Case(
                short=_lines("""
                    Proof of (balance|funds) (needed for|as of) {date}
                    (Interest|Tax) (certificate|paper) for {year}, (please|where)?
                    (Stop|No more) paper statements (please|for me)
                    (Wrong|Strange) (balance|amount) on my {month} statement
                    """),
                asks=_lines("""
                    I need a (letter|paper) that confirms how much (I had|was) on my account on {date}.
                    The (embassy|consulate|university) (asks for|wants) proof that I have {large} on my account.
                    Please stop sending me statements by post, (I read them in the app|it is a waste of paper).
                    (I would like|Please send me) the statements on paper again, (my printer is broken|I like to \
                    file them).
                    On the statement for {month} the balance (does not match|differs from) what the app \
                    (shows|showed me).
                    My (auditor|accountant) (asks for|needs) a confirmation of all our balances (as of|on) {date}.
                    """),
                details=_lines("""
                    It should be in English and (signed|stamped).
                    Savings (should|have to) be (on it|included) too, not just the current account.
                    (Last year|The last time) the branch in {city} did it (while I waited|within the hour).
                    The difference is {amount}, (exactly|almost exactly) one direct debit.
                    I can (pick it up|collect it), or you send it to the address you have.
                    """),
                answers=_lines("""
                    We have prepared the balance certificate, and it is in your document archive with our signature.
                    A balance certificate in English, with a stamp, will be posted within {days} working days.
                    [{date}]A balance certificate for {date} can be issued and costs {fee}.
                    [stop/no more]From next month, every account statement comes to the document archive only.
                    [on paper again]From next month, every account statement comes by post again, at the price of \
                    the postage.
                    [match/differs/wrong/strange]The account statement counts booked payments, while the \
                    transaction history includes pending ones too.
                    [interest/tax]The certificate for {year} has been placed in the document archive.
                    """),
            ),
        ),
        steps=_lines("""
            In the app, please open Documents, then choose the (month|year) and tap Download.
            The first copy of the year is free; each further one costs {fee}.
            You can choose between paper and PDF under Settings.
            The file can be opened with the password you set for the app.
            Please check that the (name|period) is right before you pass it on.
            """),
        rules=_lines("""
            An account statement is issued once a month and placed in the document archive.
            The document archive keeps each statement for ten years, also after a card or a name has changed.
            The transaction history is practical, but authorities often accept only an account statement.
            A balance certificate names the holder, the account and the balance on one day, and it bears a signature.
            A balance certificate costs {fee}, or nothing for students who need it for a visa.
            Paper statements cost the postage, and customers may return to them at any time.
            The statement shows booked payments only, which explains most differences from the balance in the app.
            Customers should check each statement and report mistakes within six weeks.
            Statements from before {year} come from the central archive, which needs {days} working days.
            Landlords may ask for proof of income, but the customer may black out other bookings.
            A list of card payments alone can be exported from the app as a table.
            Interest and tax certificates for a year are ready by the end of February.
            """),
    ),
    "currency_exchange": Topic(
        subject="currency exchange",
        area="payments",
        calm=True,
        glossary={
            "exchange rate": "The exchange rate says how much of one currency is paid for another.",
            "mid-market rate": "The mid-market rate lies halfway between the buying and the selling price.",
            "conversion margin": "The conversion margin is the part of a rate that the bank keeps for a conversion.",
            "foreign currency account": "A foreign currency account holds money in another currency.",
            "forward contract": "A forward contract fixes today the rate at which money is changed on a later day.",
        },
        cases=(
            Case(
                short=_lines("""
                    (What is|Today's) (the |your |)rate for {currency}?
                    (Change|Exchange) {amount} (into|to) {currency}
                    (Need|Want) {currency} (in cash |)(by {date}|for {trip})
                    How (much|many) {currency} for {amount}?
                    """),
                asks=_lines("""
                    What (rate|price) do I get if I (change|exchange) {amount} into {currency} (today|this week)?
                    I (need|would like) {currency} (worth {amount} |)in cash for (a trip|our holiday), (can|may) I \
                    order them?
                    How do I send {amount} in {currency} to {payee} without losing (half of it|much) in the exchange?
                    We (are paid|invoice) in {currency} and (want|would like) to (hold|keep) the money without \
                    changing it each time.
                    Is it (better|cheaper) to change (money|{amount}) here or to pay by card in {trip}?
                    Our company has to pay {large} in {currency} in {month} and (wants|would like) to fix the rate \
                    now.
                    Can I open an account in {currency} (with you|at your bank), and what does it cost?
                    Do you (buy back|take back) {currency}? I (brought|have) some (left over |)from {trip}.
                    """),
                details=_lines("""
                    {bank} (quotes|offers) a (slightly |)better rate, so I (thought I would ask|am comparing).
                    I am leaving on {date}, (so it has to be quick|which is soon).
                    (The branch|The desk) in {city} had none left {ago}.
                    It does not have to be exact, (a rough figure|an idea of the cost) is enough.
                    I (worry|am afraid) that the rate (moves|turns) against us (before then|by {month}).
                    Small notes would be (nice|best), if you have them.
                    I do not want to carry much cash, as I lost my wallet (there|abroad) once.
                    """),
                answers=_lines("""
                    Today's exchange rate for {currency} includes a conversion margin of one per cent over the \
                    mid-market rate.
                    For {amount} the conversion margin is about one per cent, and there is no other fee.
                    The exchange rate moves all day, and our conversion margin of one per cent is added when you \
                    confirm.
                    [in cash/need {currency}/want {currency}]Cash in {currency} can be ordered until {cutoff}, at \
                    the exchange rate of the day.
                    [back]We buy notes in {currency} at the exchange rate of the day, though not coins.
                    [hold/keep/open an account]A foreign currency account lets you hold {currency} and change it on \
                    the day you choose.
                    [fix]With a forward contract you fix the exchange rate for {currency} now and pay in {month}.
                    [by card]Paying by card is cheaper, as its exchange rate is closer to the mid-market rate than \
                    that of cash.
                    """),
            ),
            Case(
                short=_lines("""
                    (Bad|Terrible|Wrong) exchange rate on my {trip} (payment|purchase)
                    {fee2} fee for paying in {currency}, (why|what is it)?
                    Rate for {amount} in {currency} (looks wrong|seems off)
                    (Why|How come) two different rates on {date}?
                    """),
                asks=_lines("""
                    I paid {amount2} in {trip} {ago}, and you (booked|charged) far more than the rate on the internet.
                    Which rate did you use for my (card payment|payment) in {currency} on {date}?
                    There is a fee of {fee2} on my (purchase|payment) in {currency}, (nobody mentioned it.|where \
                    does it come from?)
                    A transfer in {currency} (came|arrived) {ago}, and (only {amount} was|less than expected was) \
                    credited.
                    The cash machine in {trip} asked whether to convert, I said yes, (and lost a lot.|was that a \
                    mistake?)
                    Why is the rate in your app (different|not the same) from the one (on the news|used on {date})?
                    """),
                details=_lines("""
                    By my (sums|reckoning) the difference is {amount3}.
                    The receipt (says|reads) one thing and the statement another.
                    I was told there are no (charges|fees) for cards abroad (any more|).
                    The card ending {card} was used, (not|and not) the credit card.
                    The booking came (two|three) days later, so the rate (may|might) have moved.
                    """),
                answers=_lines("""
                    Card payments use the exchange rate of the booking day plus a conversion margin, not the \
                    mid-market rate.
                    [cash machine]The machine converted the amount itself, so its own exchange rate applied and not \
                    ours.
                    [fee]I have checked it: the exchange rate was right, but the fee was not, and you get it back.
                    [transfer]The transfer was converted on arrival, and a foreign currency account would save you \
                    the conversion margin.
                    [app/internet/two different]The news shows the mid-market rate, while customers pay that rate \
                    with a conversion margin on top.
                    """),
            ),
        ),
        steps=_lines("""
            Abroad, always choose to pay in the local currency.
            The calculator in the app shows the rate, the margin and the total before you confirm.
            Please bring your identity card when you collect cash.
            Rates change every few seconds, so the final one is fixed at confirmation.
            Coins cannot be exchanged, only notes.
            """),
        rules=_lines("""
            The bank changes money at the mid-market rate plus a conversion margin, which is shown before the \
            customer confirms.
            The conversion margin is one per cent for the main currencies and up to three per cent for rare ones.
            Card payments abroad are converted at the exchange rate of the day on which they are booked.
            When a shop or a cash machine offers to convert, the customer should decline and pay in the local \
            currency.
            A foreign currency account suits people who are paid in {currency} or who pay rent abroad.
            Companies can fix a rate for up to twelve months with a forward contract.
            A forward contract must be fulfilled even if the rate becomes better in the meantime.
            Cash in {currency} must be ordered {days} working days in advance in small branches.
            Incoming transfers in another currency are converted at once unless a foreign currency account exists.
            An exchange rate on the news is not the rate at which anyone can buy.
            Weekend conversions carry a small surcharge, because the markets are closed.
            Customers going to {trip} often ask whether to take cash or a card, and the answer is a little of both.
            """),
    ),
    "pin_change": Topic(
        subject="PIN changes and blocked PINs",
        area="cards",
        calm=True,
        glossary={
            "secure PIN view": "The secure PIN view shows the PIN in the app for a few seconds.",
            "retry counter": "The retry counter on a card counts wrong entries and locks the PIN at three.",
            "chip update": "A chip update writes a new PIN into the card at a cash machine.",
            "PIN letter": "A PIN letter brings a PIN by post, apart from the card.",
        },
        cases=(
            Case(
                short=_lines("""
                    (How do I|How can I|Want to) change my PIN(| for card {card}| in the app)
                    Change (the|my) (card |)PIN (please|in {city}|abroad)
                    (New|Different) PIN for (my card|card {card}) (please|wanted)
                    Choose my own PIN, (possible|how|where)?
                    """),
                asks=_lines("""
                    How (can|do) I change the PIN of my card (ending {card}|)?
                    I would like to (choose|set) my own PIN (for the new card|instead of the one you sent).
                    Can the PIN be (changed|set) (in the app|at any cash machine|abroad) or only (in the branch|at \
                    your machines)?
                    Someone (watched|may have watched) me type my PIN {place}, (I want to change it|please give me \
                    a new one).
                    I changed the PIN {ago}, but the (shop|terminal at {shop}) (still wants|only takes) the old one.
                    My (new |)card has a number I (cannot remember|keep mixing up), (can I have|may I keep) the old \
                    PIN?
                    (Is it possible|Would it be possible) to have the same PIN on (both my cards|the debit and the \
                    credit card)?
                    """),
                details=_lines("""
                    The cash machine (at the station|in {city}) (did not offer|does not show) that option.
                    I (looked|searched) under Cards in the app and (found nothing|saw only the limits).
                    The card itself is not (lost|blocked), I just want (another|a better) number.
                    The present one (is|looks) like my (birthday|door code), which (is not wise|worries me).
                    (Does|Would) it (cost|take) anything?
                    I am (not good with|no friend of) (machines|apps), so please explain it (slowly|step by step).
                    """),
                answers=_lines("""
                    You can choose a new PIN in the app, and a chip update at a cash machine makes it valid.
                    At any of our cash machines, select Change PIN and the chip update happens in the same step.
                    Your present number can be seen with the secure PIN view before you change it.
                    [changed the]The new PIN works online at once, but shops need a chip update, so please insert \
                    the card once.
                    [old pin/same pin]You may use the same number for both cards, and a chip update at a cash \
                    machine makes it valid.
                    """),
            ),
            Case(
                short=_lines("""
                    I forgot my (card |)PIN(| for card {card}|, what now|, help)
                    PIN (blocked|locked) after three (tries|attempts)
                    (Wrong|Incorrect) PIN three times (at {shop}|{ago})
                    (Remind me of|Can't remember) (my|the) card PIN
                    PIN for new card (not here|never came|missing)
                    """),
                asks=_lines("""
                    I have forgotten (my PIN|the PIN of the card ending {card}), how do I (get|see) it again?
                    I typed the wrong PIN three times at {shop} and now (the card is refused|it is blocked).
                    The (letter|post) with the PIN (never came|has not arrived), (the card has|though the card came \
                    {ago}).
                    My PIN does not work (any more|since {date}), (the machine says|it says) wrong number.
                    (Can|Could) you unlock my PIN? (My son|I) entered it wrongly (too often|three times) {ago}.
                    After (an illness|a long trip|six months without using it) I cannot (recall|remember) the \
                    number for my card.
                    """),
                details=_lines("""
                    Contactless still works for small (sums|amounts), (strangely|oddly) enough.
                    I need cash (today|by {date}), {amount} at least.
                    (The fingerprint|The log-in) for the app works, it is only the card.
                    I was (nervous|in a hurry) and mixed it up with (another card|my phone code).
                    A payment of {amount} was declined because of it.
                    I do not want a whole new card, (the old one|it) is fine.
                    """),
                answers=_lines("""
                    Please use the secure PIN view first, and if that fails we post a PIN letter.
                    [forgot/recall/remember/remind]You can see the number with the secure PIN view in the app, \
                    under the card.
                    [wrong pin/blocked/unlock/locked/incorrect]Three wrong entries filled the retry counter, and I \
                    have reset it for you.
                    [wrong pin/blocked/unlock/locked/incorrect]The retry counter is reset with a chip update, so \
                    please use one of our cash machines next.
                    [letter/post with/new card]We have sent a new PIN letter, which takes {days} working days and \
                    comes without our logo.
                    """),
            ),
        ),
        steps=_lines("""
            Please do not choose a birthday or a row such as 1234.
            Changing the number is free of charge, as often as you like.
            Nobody at the bank can see your number, and nobody will ask for it.
            Please always cover the keypad with your hand.
            If it fails again, the card needs to be replaced, and we do that at no cost.
            """),
        rules=_lines("""
            A customer can change the PIN in the app or at any cash machine of the bank, free of charge.
            After a change in the app, the card needs a chip update, which happens at the next use with the chip.
            Three wrong entries fill the retry counter, and the PIN is then locked.
            The retry counter can be reset by the bank, but the card must be put into a cash machine afterwards.
            The secure PIN view shows the number for ten seconds and needs a fingerprint or a password.
            A PIN letter is posted {days} days after the card, never in the same envelope.
            Employees cannot see a PIN and must never ask for one.
            A PIN that was watched by someone should be changed the same day.
            A forgotten PIN is no reason for a new card, and it is not the same as a lost card.
            The PIN must not be a date of birth, a phone number or four equal digits.
            A machine of another bank can pay out cash but cannot make a chip update.
            Contactless payments under €50 need no PIN, except every fifth time.
            """),
    ),
    "standing_order": Topic(
        subject="standing orders",
        area="payments",
        calm=True,
        glossary={
            "standing order": "A standing order sends the same amount to the same account at fixed times.",
            "execution date": "The execution date is the day on which an order is carried out.",
            "recurring payment": "A recurring payment happens again and again, for example each month.",
            "payment reference": "The payment reference is the text that says what a payment is for.",
        },
        cases=(
            Case(
                short=_lines("""
                    (Set up|Create|Need) (a |)monthly (transfer|payment) of {amount} to {payee}
                    Send {amount} to {payee} (every|each) month
                    Pay {payee} {amount} (automatically|on the 1st|each month)
                    (How do I|Can I) (set up|make) (an automatic|a monthly) transfer?
                    """),
                asks=_lines("""
                    I want to (send|pay) {payee} {amount} (on the first of every|every|each) month, how do I (set \
                    that up|do this)?
                    Please (set up|create) a (regular|monthly) transfer of {amount} to {payee}, starting on {date}.
                    (Can|Could) you (arrange|see to it) that {amount} goes (to {payee}|to my savings account) \
                    (every|each) (month|quarter)?
                    From {month} on, my rent of {amount} should (go out|be paid) automatically, (what do I need|is \
                    that possible)?
                    I (keep forgetting|always forget) to pay {payee}, (can the transfer|is there a way to let it) \
                    (be made|happen) by itself each month?
                    How (late|early) (can|may) I enter a regular payment for it to leave on {date}?
                    """),
                details=_lines("""
                    It should (run|go on) until {month}, then stop by itself.
                    The reference (must|should) (say|contain) the (flat|customer|contract) number.
                    The account (of {payee} |)is at {bank}.
                    The salary comes on {date}, so (a day|two days) after that would be (ideal|best).
                    I do not want a direct debit, (I like to be in control|they collect what they like).
                    If the day falls on a Sunday, (what happens|when is it sent)?
                    """),
                answers=_lines("""
                    You can create a standing order in the app, with the sum and the execution date of your choice.
                    The standing order for {amount} is set up, and the first execution date is in {days} days.
                    A recurring payment can be monthly, quarterly or yearly, and it may have an end date.
                    I have entered the recurring payment with the payment reference you gave.
                    [how late/how early]A standing order must be entered one day before its first execution date.
                    """),
            ),
            Case(
                short=_lines("""
                    (Change|Raise|Lower) my monthly payment to {payee} to {amount}
                    (Stop|Cancel|Delete|End) the monthly (transfer|payment) to {payee}
                    Rent (was not paid|did not go out|paid twice) this month
                    Monthly transfer (failed|missing|skipped) on {date}
                    """),
                asks=_lines("""
                    The (rent|monthly payment) to {payee} (goes|has gone) up, please change it to {amount}.
                    Please (stop|cancel|delete) the monthly transfer of {amount} to {payee} (from {month} on|at once).
                    My automatic (rent payment|transfer) to {payee} did not (go out|leave) on {date}, (why not|what \
                    went wrong)?
                    The monthly {amount} to {payee} (was|has been) (sent|paid) twice (this month|in {month}).
                    {payee} has a new account at {bank}, (can I change|how do I change) it in the regular payment?
                    I (would like|want) to (pause|suspend) the regular transfer to {payee} (for {months} \
                    months|until {month}).
                    I deleted the regular payment {ago}, (but|and yet) {amount} (left|was sent) again on {date}.
                    """),
                details=_lines("""
                    There was enough (money|balance) (on the day|at the time).
                    In the app the button (is greyed out|cannot be tapped) because one is pending.
                    There has already been a (reminder|complaint).
                    It (worked|ran) (for years|since {year}) without any trouble.
                    I moved out (in {month}|on {date}), so it makes no sense (any more|to go on paying).
                    I do not mean the direct debit of {merchant}, that one is (right|fine).
                    """),
                answers=_lines("""
                    A change must be made two days before the execution date, so this month the old order still \
                    counts.
                    [change it to/change my/raise/lower]The standing order now has the amount of {amount}, from the \
                    next execution date on.
                    [stop the/cancel the/delete the/end the]The standing order has been deleted, and no recurring \
                    payment will leave after today.
                    [not paid/did not/failed/missing/skipped]The standing order was not carried out because the \
                    balance was too low on the execution date.
                    [twice]The recurring payment had been entered two times, so I have deleted one and asked for \
                    the money back.
                    [pause/suspend]You can pause a recurring payment in the app without losing the payment \
                    reference and the account number.
                    [new account]The standing order goes to the new account from the next execution date on, with \
                    the same payment reference.
                    [deleted]The payment was already under way, as a standing order must be deleted two days before \
                    the execution date.
                    """),
            ),
        ),
        steps=_lines("""
            You see all regular payments in the app under Payments, then Scheduled.
            The bank tries again on the two following days if the balance is too low.
            Setting up and changing it costs nothing.
            Please check the account number and the reference once more.
            If the execution date falls on a weekend, the payment leaves on the next working day.
            """),
        rules=_lines("""
            A standing order is started by the customer, and it sends the same sum at fixed times.
            It suits rent, pocket money and savings, while a bill that varies is better paid by direct debit.
            The execution date can be any day of the month, and on weekends the next working day counts.
            Changes must be entered {days} days before the execution date in order to take effect.
            If the balance is too low, the standing order is tried again on two days and then skipped.
            A skipped recurring payment is not made up later, so the customer has to send it by hand.
            The payment reference should contain what the recipient needs, such as a flat or a contract number.
            A standing order may have an end date, or run until the customer deletes it.
            A standing order does not need a mandate, because the customer gives the order directly to the bank.
            When the rent rises, tenants must change the amount themselves, as the landlord cannot do it.
            Deleting a standing order stops future payments, but a payment that is already pending will still leave.
            Recurring payments can be paused for up to six months.
            """),
    ),
    "savings_interest": Topic(
        subject="savings and interest",
        area="accounts",
        calm=True,
        glossary={
            "annual equivalent rate": "The annual equivalent rate shows what savings really earn in a year.",
            "instant access account": "An instant access account lets a saver withdraw money on any day.",
            "fixed-term deposit": "A fixed-term deposit pays an agreed interest for money that stays for a set time.",
            "withholding tax": "Withholding tax is the part of the interest that the bank passes to the tax office.",
            "deposit guarantee scheme": "The deposit guarantee scheme protects €100,000 for each saver and bank.",
        },
        cases=(
            Case(
                short=_lines("""
                    (What|How much) interest (do I get|is there) on {large}?
                    (Current|Best) (rate|interest) for (savings|{large} in savings)?
                    (How should I save|Where should I put|How best to save) {large}?
                    (Is|Are) my savings (safe|protected|guaranteed) with you?
                    """),
                asks=_lines("""
                    What interest (do you pay|would I get) on {large} (for one year|if I can do without it for \
                    {months} months)?
                    I (have|sold my car and have) {large} to put aside, which (account|kind of savings) pays the \
                    (best|highest) rate?
                    {bank} pays {rate} on savings, (what do you offer|can you match that)?
                    Can I (take out|withdraw) money from my savings at any time, or (do I lose|does that cost me) \
                    interest?
                    How safe (are|is) {large} (on a savings account with you|in savings) if (the bank|a bank) fails?
                    My (deposit|fixed savings) of {large} (ends|comes due) on {date}, what (happens|comes) then?
                    I want to save {amount} a month for (my daughter|a house|my old age), what (do you \
                    suggest|would you do)?
                    Is it worth (fixing|tying up) my money now, or will (interest|rates) (rise|go up) (further|again)?
                    """),
                details=_lines("""
                    I do not need the money (before {month}|for a year or two).
                    (Shares|Funds) are not for me, I (sleep badly|want no risk).
                    Part of it (should|has to) stay available, (say|about) {amount3}.
                    At the moment it (lies|sits) on the current account and earns nothing.
                    Should I rather (repay|pay off) some of the mortgage with it?
                    It is an inheritance, so I (want|would like) to be careful.
                    """),
                answers=_lines("""
                    Our instant access account pays an annual equivalent rate of {offer} from the first euro.
                    A fixed-term deposit over twelve months pays {offer}, while the instant access account pays a \
                    little less.
                    For {large} I would suggest half in a fixed-term deposit and half in an instant access account.
                    [safe/protected/fails]Up to €100,000 is protected by the deposit guarantee scheme, so your \
                    savings are safe.
                    [on {date}, what]At the end of the fixed-term deposit, the money goes to the instant access \
                    account unless you renew.
                    [withdraw/take out]From an instant access account you can withdraw on any day, but not from a \
                    fixed-term deposit.
                    [a month]A monthly {amount} into an instant access account is a good start, with an annual \
                    equivalent rate of {offer}.
                    """),
            ),
            Case(
                short=_lines("""
                    (Where is|No) interest on my savings for {year}(|?)
                    Savings interest (lower than|not as) (promised|expected|agreed)
                    (Why|How much) tax (on|from) my savings interest?
                    Only {small} interest on {large}, (why|correct)?
                    """),
                asks=_lines("""
                    Why did I get only {small} of interest on {large} (in {year}|for the whole year)?
                    The interest for {year} (has not been|was not) (paid|credited) (to my savings account|yet).
                    You (lowered|cut) the interest on my savings to {rate} {ago}, (without telling me.|why was that?)
                    (How much|Which) tax (was|is) (taken|deducted) from my savings interest, and (can I avoid it|why)?
                    I was promised {rate} on my savings, but (by my sums|as I see it) I (received|got) (less|only \
                    half of it).
                    When is the interest (paid|booked), monthly or (in December|once a year)?
                    """),
                details=_lines("""
                    (I gave|I sent) you a tax (form|exemption) in {month}.
                    New customers seem to get {rate2}, which (is unfair|annoys me).
                    The money has (been there|lain there) since {year} (without a withdrawal|untouched).
                    I compared it with the {month} statement.
                    On the mortgage side you (raise|raised) the rates (fast enough|quickly).
                    """),
                answers=_lines("""
                    The annual equivalent rate of {offer} applied only in the second half of the year, and before \
                    that it was lower.
                    [tax]With an exemption order, no withholding tax is taken from your interest up to the allowance.
                    [tax]The withholding tax is a quarter of the interest, and we pass it to the tax office for you.
                    [lowered/cut]The interest on an instant access account may change at any time, and it is now \
                    {offer}.
                    [when is/not been/was not/no interest/where is]Interest is booked on the last day of the year, \
                    and the annual equivalent rate for you was {offer}.
                    [only/promised/lower than/not as]The interest was credited after withholding tax, which \
                    explains the difference.
                    """),
            ),
        ),
        steps=_lines("""
            A savings account can be opened in the app in a few minutes, without any paper.
            The tax paper for the year is in your documents from February on.
            There is no fee for a savings account.
            Money in the fixed account cannot be withdrawn early, except in hardship.
            Rates for new money are shown in the app every morning.
            """),
        rules=_lines("""
            Savers choose between an instant access account, which is flexible, and a fixed-term deposit, which \
            pays more.
            The annual equivalent rate makes accounts comparable, whether interest is paid monthly or once a year.
            Interest on an instant access account is variable and follows the market.
            A fixed-term deposit keeps its interest to the end, even when rates fall.
            Withdrawing from a fixed-term deposit before its end is possible only in cases of hardship.
            The deposit guarantee scheme covers €100,000 per person and bank, on current and savings accounts \
            together.
            The bank passes withholding tax to the tax office and shows it on a certificate.
            With an exemption order, interest up to the allowance is paid without withholding tax.
            Interest is booked on the last day of the year, or on the day an account is closed.
            Savers who have a costly overdraft should repay it before they put money aside.
            Two weeks before a deposit ends, the bank asks whether it should be renewed.
            Monthly saving by standing order, even with €25, builds up a reserve for emergencies.
            """),
    ),
    "loan_early_repayment": Topic(
        subject="early loan repayment",
        area="lending",
        calm=True,
        glossary={
            "early repayment charge": "The early repayment charge pays for interest that the bank loses.",
            "settlement figure": "The settlement figure is the exact sum that ends a loan on a given day.",
            "outstanding principal": "The outstanding principal is the part of a loan that has not been repaid.",
            "amortisation schedule": "The amortisation schedule lists the parts of every instalment.",
        },
        cases=(
            Case(
                short=_lines("""
                    (Pay off|Repay|Settle) my (car |personal |)loan early(, how|, cost|, please advise)?
                    (How much|What) to (clear|close|end) my loan (by {date}|today|now)?
                    (Cost|Fee|Charge) for repaying {large} early?
                    (Want|Like) to pay off {large} of loan
                    """),
                asks=_lines("""
                    I (would like|want) to (pay off|repay) my (car|personal|student) loan early, what (will|would) \
                    it cost?
                    How much do I (still owe|have to pay) to (end|clear) the loan on {date}?
                    I (received|inherited|got a bonus of) {large} and want to use it to (clear|pay down) my loan.
                    (Is there|Do you charge) a (fee|penalty) if I (settle|repay) the rest of my loan (of {large} \
                    |)before {month}?
                    (Can|Could) you (send|give) me the exact amount that (closes|ends) my loan (by|on) {date}?
                    I am selling the (car|house) on {date} and have to (settle|repay) the loan (with the money|from \
                    the price).
                    We (plan|want) to (redeem|pay back) our mortgage (two|three|five) years (early|ahead of time), \
                    what are the costs?
                    {bank} would take over my loan at {rate}, what do I (owe|have to pay) you to get out of it?
                    """),
                details=_lines("""
                    The contract (runs|goes on) for another (two|three|four) years.
                    The (monthly rate|instalment) is {amount}, and it leaves my account on {date}.
                    I have the money on a savings account (where it earns little|with you).
                    In the contract I (cannot find|found nothing) about (this|a charge).
                    (Is it|Would it be) cheaper to wait for the end of the fixed interest?
                    I (ordered|tried) the transfer already, but the limit was too low.
                    """),
                answers=_lines("""
                    The outstanding principal can be repaid at any time, with an early repayment charge of at most \
                    one per cent.
                    As less than a year remains, the early repayment charge is half a per cent of the outstanding \
                    principal.
                    For your loan there is no early repayment charge, so only the outstanding principal is due.
                    [how much/exact amount/what to/owe]I have ordered the settlement figure, and it is valid for \
                    {days} days.
                    [how much/exact amount/what to/owe]The settlement figure for {date} is in your documents, with \
                    an early repayment charge of {fee}.
                    [mortgage]Your mortgage has a fixed rate, so the early repayment charge covers the interest \
                    that we lose.
                    """),
            ),
            Case(
                short=_lines("""
                    (Extra|Additional) payment of {large} on my loan(| possible|, how)?
                    (Double|Raise) my loan (instalment|payments) to {amount}
                    Paid {large} extra, loan (unchanged|plan not updated)
                    Loan paid off, (still charged|where is confirmation)?
                    """),
                asks=_lines("""
                    Can I (make|pay) an extra {large} (on|towards) my loan (this year|in {month}) (without a \
                    charge|free of charge)?
                    I (would like|want) to raise the instalment to {amount} so that the loan ends (sooner|earlier).
                    I (paid|sent) an extra {large} {ago}, but the (plan|remaining term) (has not changed|looks the \
                    same).
                    My loan was (settled|paid off) {ago}, yet (another|an) instalment of {amount} (was taken|left \
                    my account).
                    After an extra payment of {large}, (does|will) the (instalment|term) (get smaller|become shorter)?
                    You (charged|took) {small} when I repaid the rest of my loan, (is that right|why)?
                    """),
                details=_lines("""
                    (My aim|The plan) is to be (free of debt|done) by {month}.
                    I (am a|was always a) (reliable|punctual) payer, (as you know|never a day late).
                    The reference on the transfer was the loan number.
                    (Once a year|Each {month}) my (employer|firm) pays a bonus, so it could happen again.
                    (Please send|I need) a confirmation for (the land registry|my insurer|{bank}).
                    """),
                answers=_lines("""
                    The new amortisation schedule is in your documents and shows the outstanding principal after \
                    each month.
                    [can i/payment of {large} on]Extra payments of up to five per cent a year carry no early \
                    repayment charge and lower the outstanding principal.
                    [i paid/i sent/paid {large}]Your extra payment is booked, and the new amortisation schedule is \
                    in your documents.
                    [after an extra]The instalment stays the same and the term becomes shorter, as the new \
                    amortisation schedule shows.
                    [raise/double]The instalment is now {amount}, and the new amortisation schedule shows when the \
                    loan ends.
                    [settled/paid off]The last instalment crossed with the settlement figure, and we will return it \
                    within {days} working days.
                    [{small}]The {small} was the early repayment charge, worked out on the outstanding principal of \
                    that day.
                    """),
            ),
        ),
        steps=_lines("""
            Please transfer the sum with the loan number as the reference.
            After the last payment we send a confirmation that the loan has ended.
            The saved interest is shown in the calculator of the app.
            Please (cancel|delete) the standing order for the instalment only after our confirmation.
            All figures change by the day, as interest is counted daily.
            """),
        rules=_lines("""
            A consumer may repay a loan early at any time, in full or in part.
            The early repayment charge is at most one per cent, or half a per cent in the last year of the loan.
            The settlement figure is valid for {days} days, because interest is counted every day.
            The outstanding principal falls slowly at first, since early instalments consist of interest for the \
            most part.
            The amortisation schedule is sent again after each extra payment.
            An extra payment shortens the term, unless the customer asks for a smaller instalment.
            For a mortgage with a fixed rate, the charge covers the interest that the bank loses, and it can be high.
            If a house is sold, the bank must accept early repayment.
            No early repayment charge is due for loans with a variable rate.
            Insurance that was sold together with the loan is refunded in proportion when the loan ends early.
            Before repaying, customers should keep a reserve of three months' expenses.
            A loan that another bank takes over is settled directly between the banks.
            """),
    ),
    "address_change": Topic(
        subject="changes of address and personal data",
        area="accounts",
        calm=True,
        glossary={
            "proof of address": "A proof of address is a paper, such as a bill, that shows where a person lives.",
            "know your customer": "The know your customer rules oblige banks to check who their customers are.",
            "tax residence": "The tax residence is the country in which a person pays tax on all income.",
            "correspondence address": "The correspondence address is the place to which letters are sent.",
        },
        cases=(
            Case(
                short=_lines("""
                    (New|Changed|My new) address: {street}, {city2}
                    (Moved|Moving) to {street} (in {city2}|on {date}|)(, please update|, please note it)
                    (Change|Update) my address (please|to {street})
                    How do I (change|update) my (postal |home |)address?
                    """),
                asks=_lines("""
                    I (have moved|am moving) to {street} in {city2}, please (change|update) my (address|records).
                    (Please note|From {date}) my new address (is|will be) {street}, {city2}.
                    How (do|can) I (tell you|let you know) that I (moved|have moved)? I now live in {city2}.
                    We are (moving house|moving) on {date}, (where|how) do we enter the new address?
                    (Can|Could) you send my (letters|post|new card) to {street} in {city2} (from now on|until {date})?
                    My letters (still |)(go|are going) to the old flat, although I (changed|reported) the address \
                    {ago}.
                    Our company has a new (office|seat) at {street} in {city2} (since {date}|).
                    I am (leaving|moving abroad) for {trip} in {month}, what (do you need|has to change) besides \
                    the address?
                    """),
                details=_lines("""
                    The phone number and the e-mail (stay|remain) the same.
                    The (old|previous) tenant of the flat (opens|might open) my post, so (it matters|I am a bit \
                    worried).
                    Our joint account (needs|should get) the new address (as well|too).
                    (A new card|A statement) is (already |)on its way to the old place, I fear.
                    I (tried|wanted) to do it in the app, but (it asks for a document|the field is locked).
                    My mail is forwarded until {month}, after that it is lost.
                    I can (show|send) the rental contract (or a bill from {merchant}|) if (needed|necessary).
                    """),
                answers=_lines("""
                    The new address is recorded, and under the know your customer rules we need a proof of address \
                    from you.
                    Please upload a proof of address, such as a bill that is not older than three months.
                    [how do/how can/where]You can enter the new address in the app and add a photo of a proof of \
                    address.
                    [you send my]Your correspondence address is now {street}, and the next letters go there.
                    [{trip}]As you are leaving the country, we also need a form about your tax residence.
                    [although]The change was held because the proof of address was missing; once we have it, it \
                    takes one day.
                    [company]For a company, an extract from the register serves as proof of address.
                    """),
            ),
            Case(
                short=_lines("""
                    (Name|Surname) changed after (wedding|divorce|marriage), (what now|please update)
                    New (phone|mobile) number, (please change it|how to update)?
                    (Update|Change) my (e-mail|phone number) please
                    Why (do you want|must I send) (my papers|my ID) again?
                    """),
                asks=_lines("""
                    I (got married|was divorced) in {month} and have a new (name|surname), (what do you need|how do \
                    I change it)?
                    My (mobile number|e-mail address) has changed, (please update it.|where can I enter the new one?)
                    You (ask|asked) me to confirm my (address|personal data) again, (is that really you|why is that \
                    needed)?
                    (Could|Can) my letters go to (my daughter|my office|a post box) and my home address stay as it is?
                    I (live|work) in {trip} half of the year, which address (do I give|should I use)?
                    You have my name (wrong|misspelt) (on the card|on all letters), (please correct it.|can you fix \
                    it?)
                    """),
                details=_lines("""
                    The marriage certificate is (in a foreign language|ready), if you need it.
                    The codes for my (transfers|card payments) still go to the old number.
                    The old (phone|number) (is gone|no longer exists), so I (get no|cannot receive any) codes.
                    I (do not like|am wary of) sending (papers|documents) by e-mail.
                    Nothing else (has changed|changes), neither the job nor the tax number.
                    """),
                answers=_lines("""
                    Under the know your customer rules we confirm each change of personal data, which takes one \
                    working day.
                    [again]Under the know your customer rules we must confirm personal data every few years, so the \
                    letter is genuine.
                    [letters go/which address]A separate correspondence address is possible, and your home address \
                    stays as it is.
                    [half of the year]Your tax residence decides, and we can add the other place as a \
                    correspondence address.
                    [married/divorce/wedding/marriage]Please bring the certificate to a branch; for a new name, the \
                    know your customer rules ask for the original.
                    [wrong/misspelt]I have corrected the name; the know your customer rules only ask for a copy of \
                    your identity card.
                    [phone/mobile/e-mail]The new contact details are saved, while your tax residence and your \
                    correspondence address are unchanged.
                    """),
            ),
        ),
        steps=_lines("""
            You can change it in the app under Profile, then Personal data.
            The change takes effect within {days} working days.
            All your accounts and cards are updated together.
            We will send a short letter about the change, as a protection against fraud.
            Please tell your employer and your insurers as well.
            """),
        rules=_lines("""
            Customers should report a new address within two weeks of moving.
            The change can be made in the app, and a proof of address is needed for a move to another country.
            The know your customer rules oblige the bank to keep names, addresses and tax data up to date.
            A correspondence address may differ from the home address, for example for a post box.
            When the tax residence changes, the customer must fill in a new form and give a tax number.
            A rental contract, a bill for electricity or a letter from an authority serves as proof of address.
            After a wedding, a new name is entered when the customer shows the certificate and the new identity card.
            Letters that come back lead to a hold on new cards until the address is clear.
            A new phone number needs more care than a new street, because codes for payments are sent to it.
            The bank writes to the old address after each change, so that a false one is noticed.
            Companies prove a new seat with an extract from the register.
            Holders of a joint account must each report their own move.
            """),
    ),
}

# Concerns so vague that they may belong to any of the intents named: the error that no classifier can avoid.
VAGUE: dict[tuple[str, ...], tuple[str, ...]] = {
    ("card_declined", "transfer_pending", "standing_order"): _lines("""
        (My|The|A) payment (of {amount} |)(did not go through|failed|was not made)( {ago}|), (why|what \
        happened|what can I do)?
        Something went wrong when I (paid|wanted to pay) {amount} {ago}.
        """),
    ("transfer_limit", "card_declined", "transfer_pending"): _lines("""
        I (tried|wanted) to pay {amount} {ago} and (the app|your app) (refused|did not let me|showed an error).
        """),
    ("fraud_report", "direct_debit_dispute", "overdraft_fee"): _lines("""
        There is {amount} missing from my account, (where did it go|who took it|what is going on)?
        {amount} (was taken|has gone) from my account {ago}, and (I do not know why|nobody told me).
        """),
    ("overdraft_fee", "currency_exchange", "loan_early_repayment"): _lines("""
        You charged me {small} {ago} and I do not (understand|see) (why|what for).
        A fee of {small}, (where does that come from|really|is that a mistake)?
        """),
    ("mortgage_rate", "savings_interest", "currency_exchange"): _lines("""
        What rate (do you offer|can you give me|would I get) (at the moment|today|for {large})?
        {bank} has a better rate (than you|now), (can you match it|what do you say to that)?
        """),
    ("card_lost", "pin_change", "card_declined"): _lines("""
        I cannot use my card (ending {card} |)(any more|since {date}|at the moment), (what now|what can I do)?
        (Please help|Help), my card is (blocked|locked) (since {date}|again|and I am in {trip}).
        """),
    ("card_lost", "pin_change", "address_change"): _lines("""
        The letter you (promised|sent) has not (arrived|come), and I have been waiting for {wait}.
        """),
    ("statement_request", "account_closure", "loan_early_repayment", "savings_interest"): _lines("""
        I need a (paper|confirmation|document) from you (for the tax office|for {bank}|by {date}).
        """),
    ("standing_order", "direct_debit_dispute", "account_closure"): _lines("""
        Please stop (all payments|the monthly payment of {amount}|everything) (from {month} on|after {date}).
        """),
    ("statement_request", "address_change"): _lines("""
        My (post|mail) from you (does not arrive|gets lost), (can you send it another way|what can we do)?
        """),
    ("loan_early_repayment", "mortgage_rate"): _lines("""
        How much (do I|do we) (still |)owe you, and can the (monthly rate|instalment) be (changed|lowered) (from \
        {month} on|)?
        """),
    ("fraud_report", "card_lost", "pin_change"): _lines("""
        (Someone|A stranger|Somebody) (may have|has) my card (number |details |)and (my PIN|perhaps the PIN), what \
        should I do?
        """),
    ("transfer_limit", "standing_order"): _lines("""
        I want to (send|pay) {large} to {payee} in several parts, how (do I do that|does it work)?
        """),
}

GREETINGS: dict[str, tuple[str, ...]] = {
    "app": _lines("""
        (Hi|Hello|Hey)(| there| team)!
        (Hi|Hello),
        Good (morning|afternoon|evening),
        """),
    "e-mail": _lines("""
        Dear (Sir or Madam|support team|Meridale team|customer service),
        Good (morning|afternoon),
        Hello,
        """),
    "phone": _lines("""
        (Yes, hello|Hello|Good morning|Hi), (thanks for taking my call|my name is {name}|it is {name} speaking).
        (Um, hi|Hello|Hi, yes), (I hope I have the right department|I was put through to you).
        """),
    "branch": _lines("""
        (Hello|Good morning|Good afternoon), (I was told to ask here|is this the right desk? I have a question|it \
        is about my account).
        (Good morning|Hello).
        """),
}

SIGN_OFFS: dict[str, tuple[str, ...]] = {
    "app": _lines("""
        (Thanks|Thank you|Cheers)!
        (Best|Thanks), {name}
        """),
    "e-mail": _lines("""
        (Kind|Best) regards, {name}
        Yours (faithfully|sincerely), {name}
        With (best|kind) wishes, {name}
        """),
    "phone": _lines("""
        (That is|That would be) all(, thank you|).
        (Thanks|Thank you), I will wait for your call.
        """),
    "branch": _lines("""
        (I can|I will) wait (here|over there).
        (Thank you|Thanks) for (your time|looking into it).
        """),
}

MOOD_BEFORE: dict[str, tuple[str, ...]] = {
    "neutral": _lines("""
        I have a question.
        (It is|This is) about (my|our) (account|contract) (with you|at Meridale Bank).
        """),
    "polite": _lines("""
        I hope you are (well|having a good day).
        (Sorry|I am sorry) to (bother|trouble) you(| again).
        I (hope|am sure) you can help me.
        """),
    "angry": _lines("""
        I am (really|very|rather) (annoyed|fed up|disappointed).
        This is the (second|third) time (I am writing|I ask) about this.
        (Honestly|Frankly), this is (getting ridiculous|beyond a joke).
        (Twenty minutes|Half an hour) in your queue, and (here I am again|for nothing).
        """),
    "worried": _lines("""
        I am (quite|really|very) worried.
        Something (strange|bad) has happened.
        I (hardly|barely) slept (because of this|last night).
        """),
    "hurried": _lines("""
        (Quick|Short) question.
        I am in a hurry, so (briefly|in short).
        """),
}

MOOD_AFTER: dict[str, tuple[str, ...]] = {
    "neutral": _lines("""
        Please (advise|let me know).
        What (is the next step|do I do next|are my options)?
        """),
    "polite": _lines("""
        Thank you (very much|so much) (for your help|in advance).
        I would be grateful for a (short|quick) (answer|reply).
        (Take your time|There is no great hurry), I know you are busy.
        """),
    "angry": _lines("""
        (Sort this out|Fix this) (today|now), please.
        This is (simply |just |)not (acceptable|good enough).
        If nobody answers (this week|by {date2}), I will (complain to the ombudsman|take my business to {bank2}).
        I expect (an answer|a proper answer|an apology) and not another (form letter|standard text).
        """),
    "worried": _lines("""
        Please (tell me|let me know) (what to do|what happens next|that this can be solved).
        (Please answer|Please reply) (quickly|soon), I (do not know what to do|cannot think of anything else).
        """),
    "hurried": _lines("""
        (Please be quick|I need this fast), I am (about to board|between two meetings|on my break).
        (Today|This morning), if (at all |)possible.
        """),
}

BACKGROUND: dict[str, tuple[str, ...]] = {
    "retail": _lines("""
        I have been (a customer|with you) for (six|eight|eleven|twenty) years.
        (My partner|My husband|My wife) and I (share|have) a joint account (with you|here).
        I (work|am employed) (at a school|in a hospital|as a driver|in an office) in {city}.
        I have been (retired|on a pension) since (last year|{year2}) and (watch|count) every euro.
        """),
    "student": _lines("""
        I am a student (in {city}|and live on a tight budget).
        I am in my (first|second|final) year at university.
        I (only |)have a (small |)grant and a weekend job.
        """),
    "business": _lines("""
        I run a small (bakery|garage|bookshop|nursery) in {city}.
        We are a (workshop|design studio|building firm|practice) with (four|nine|twelve) employees.
        It concerns the business account, not my private one.
        """),
    "premium": _lines("""
        I am a premium customer (and usually call my adviser|with you in {city}).
        My adviser is on holiday, so I am (writing|turning) to you.
        For what the premium account costs, I expect (some service|a quick answer).
        """),
}

# What people mention besides their concern. A customer never gets an aside from the area of the concern itself.
ASIDES: dict[str, tuple[str, ...]] = {
    "cards": _lines("""
        My card ending {card} (still works|is fine), so it is not (about that|the card).
        (I changed|By the way, I changed) the PIN in {month2}, and that (went well|was easy).
        The card payment at {shop2} {ago2} went through (normally|without a problem).
        I lost a card (last year|in {month2}), and you (handled|solved) that (well|quickly).
        Nobody has tried to trick me or anything, it is not about fraud.
        My other card was declined {ago2}, but that is (another story|sorted out).
        """),
    "payments": _lines("""
        My transfers (and standing orders |)have gone through as usual.
        The direct debit (for|of) (the rent|my phone|the electricity) (left|went out) on time, (as always|by the way).
        I sent {payee2} a transfer of {amount9} {ago2}, and that worked.
        The standing order for {payee2} can stay as it is.
        The transfer limit is (high enough|not the problem).
        I (changed|exchanged) some {currency2} with you in {month2}, and (the rate was good|that was quick).
        """),
    "lending": _lines("""
        I (asked|wrote) about the mortgage rate in {month2}, (this is something else|that is settled).
        My overdraft is not (in use|the issue) (here|at the moment).
        The loan for the car is nearly paid off, (by the way|if that plays a role).
        I also (have|pay) a mortgage with you, (at {rate9}|so you know me).
        There was an overdraft fee in {month2}, but you (refunded|explained) it.
        """),
    "accounts": _lines("""
        The savings account is (not affected|a separate matter).
        I (already have|have downloaded) the statement for {month2}.
        You (already |)have my new address (from {month2}|since I moved).
        I am not (planning|asking) to close the account, (do not worry|at least not yet).
        My savings earn (almost nothing|next to nothing), but that is (another topic|for another day).
        """),
}

# How a customer recalls another matter that is not the concern now.
OTHER_MATTERS: tuple[str, ...] = _lines("""
    My last message, "{other}", has been answered, (thank you|so please forget it).
    (Last month|In {month7}) I wrote "{other}", but that is (settled|solved|done).
    (This is not about|I do not mean) my earlier message, "{other}".
    (Another time|Next week) I will write about something else, "{other}", but not today.
    """)

# How a reply may begin and end.
REPLY_OPENERS: dict[str, tuple[str, ...]] = {
    "neutral": _lines("""
        Thank you for (your message|contacting us|asking).
        """),
    "polite": _lines("""
        Thank you for (your kind message|writing to us|getting in touch).
        Thank you for writing, {name}.
        """),
    "angry": _lines("""
        I am sorry (for the trouble|to hear this|that you had to write to us).
        (I apologise|We apologise) for the inconvenience.
        """),
    "worried": _lines("""
        I understand (that this is worrying|your concern).
        You did the right thing by contacting us (quickly|straight away).
        """),
    "hurried": _lines("""
        Here is the short answer.
        """),
}

REPLY_CLOSERS: tuple[str, ...] = _lines("""
    Please quote reference {ref} if you (write|call) again.
    Let us know if anything (is unclear|remains open).
    We will confirm this (by secure message|by e-mail|in the app).
    You can follow the request in the app under Messages.
    """)

DOCUMENT_TITLES: tuple[str, ...] = _lines("""
    Meridale Bank policy: {subject}
    Help centre: {subject}
    A (short |)guide to {subject}
    Staff handbook, section {section}: {subject}
    (Questions and answers|Frequently asked questions): {subject}
    What customers should know about {subject}
    (Service note|Circular) {section} on {subject}
    """)

# Sentences that suit every subject: the first of a document, then those for anywhere.
INTRODUCTIONS: tuple[str, ...] = _lines("""
    This page explains how Meridale Bank deals with {subject}.
    (Every week|Every day) our (branches|service team|advisers) (answer|receive) questions about {subject}.
    The rules below on {subject} apply to (private customers|new customers|all customers) from {date} on.
    (Few|Not many) matters lead to as many (calls|messages) as {subject}, (so|and so) the main points are set out \
    here.
    (Colleagues|New colleagues) who answer messages about {subject} should read this note first.
    In {month} we (reviewed|updated) our rules on {subject}, and the result is (short|set out below).
    If you have a question about {subject}, the answer is probably on this page.
    """)

GENERAL_RULES: tuple[str, ...] = _lines("""
    Customers can reach us (in the app|by phone|by e-mail), or visit (any|a) branch (between nine and four|on \
    working days).
    A complaint is answered within {days} working days, and (the customer|everyone) may turn to the ombudsman \
    afterwards.
    Before any change is made, the employee confirms the identity of the customer with two questions.
    Fees are listed in the price list, which is (displayed|available) in every branch and in the app.
    Premium customers have an adviser of their own, but the same rules (apply to|hold for) them.
    Students pay (no|half of the) account fee until they turn {age}.
    Business customers should name a second person who may give orders (when the owner is away|in an emergency).
    A good answer is short, names the next step and says how long it will take.
    An angry message deserves the same care as a polite one, and an apology comes first.
    When a message is unclear, ask one question and not five.
    We keep personal data only as long as the law requires, and nobody may look at an account without a reason.
    Messages in the app are answered within {hours} hours, (letters|e-mails) within {days} working days.
    If two rules seem to conflict, the one that protects the customer (comes first|wins).
    Everything on this page is free of charge unless a fee is mentioned.
    """)

# How a document quotes a customer and the bank; `//` is a line break.
EXAMPLES: tuple[str, ...] = _lines("""
    For example, a customer in {city} wrote: "{question}" (We|The bank) answered: "{answer}"
    A typical message (reads|sounds) like this: "{question}" A (good|suitable) reply would be: "{answer}"
    Last {month3}, a {segment} customer asked (us|in the app): "{question}" Our reply was: "{answer}"
    "{question}" To such a message we reply: "{answer}"
    """)

QUESTION_AND_ANSWER: tuple[str, ...] = _lines("""
    Question: {question} // Answer: {answer}
    Q: {question} // A: {answer}
    Customer: {question} // Bank: {answer}
    """)
