//! Plans that failed once, as they were then: each holds what was mended for it, whatever seeds mean later.

use super::clock::MS;
use super::faults::{Fault, Kind};
use super::run::{Plan, Shape};

const TUNED: Shape = Shape {
    nodes: 3,
    sync: "quorum",
    strict: true,
    count: 1,
    native: true,
    quorum_failover: true,
    profile: "tuned",
    failsafe: false,
    start_timeout: 300,
    rewind: true,
    wipe: true,
    backoff: 0,
};

/// Kind, time and length in nanoseconds and milliseconds, node and other, dice, and whether the primary is meant
/// and not that node.
type Listed = (Kind, u64, u64, usize, usize, u32, bool);

/// What was mended, the seed, the cluster, and the faults that showed it.
type Row = (&'static str, u64, Shape, &'static [Listed]);

/// What was mended, and the plan that showed it.
pub fn plans() -> Vec<(&'static str, Plan)> {
    let born = BIRTHS.iter().map(|row| plan(row, true));
    let stood = CLUSTERS.iter().map(|row| plan(row, false));
    born.chain(stood).collect()
}

fn plan((what, seed, shape, faults): &Row, birth: bool) -> (&'static str, Plan) {
    let fault = |&(kind, at, lasts_ms, node, other, dice, primary): &Listed| Fault {
        kind,
        at,
        lasts: lasts_ms * MS,
        node,
        other,
        dice,
        primary,
    };
    let plan = Plan {
        seed: *seed,
        shape: shape.clone(),
        faults: faults.iter().map(fault).collect(),
        birth,
        mutation: None,
    };
    (what, plan)
}

/// While the cluster was being made.
#[rustfmt::skip]
const BIRTHS: &[Row] = &[
    ("a claim to bootstrap whose answer was lost is taken up", 17_787, Shape { native: false, profile: "fast", rewind: false, backoff: 6, ..TUNED }, &[
        (Kind::EtcdLossy, 45_551_258, 2_356, 2, 2, 3_506_042_139, true),
    ]),
    ("a new cluster was claimed, and its member never heard of it", 45_600, Shape { nodes: 2, sync: "on", strict: false, native: false, quorum_failover: false, rewind: false, ..TUNED }, &[
        (Kind::CutEtcd, 83_413_622, 4_709, 1, 1, 1_130_445_258, false),
    ]),
    ("a new cluster was claimed, and its member hangs", 56_697, Shape { sync: "on", strict: false, native: false, ..TUNED }, &[
        (Kind::EtcdSlow, 793_224_560, 638, 1, 2, 4_162_384_442, true),
        (Kind::LoopStall, 1_432_736_699, 7_140, 2, 2, 312_118_908, true),
    ]),
    ("a member lost its claim, and hears of the other cluster late", 58_982, Shape { nodes: 2, sync: "on", strict: false, profile: "safe", start_timeout: 0, ..TUNED }, &[
        (Kind::LeaseRevoked, 1_263_353_938, 1_068, 0, 0, 1_608_114_123, true),
        (Kind::CutEtcd, 987_501_373, 1_172, 0, 0, 1_447_436_581, true),
    ]),
    ("an agent is killed while it makes the cluster, whose server runs on", 323_607, Shape { sync: "off", strict: false, native: false, quorum_failover: false, profile: "safe", failsafe: true, rewind: false, ..TUNED }, &[
        (Kind::AgentCrash, 1_157_558_759, 9_667, 2, 1, 1_279_634_903, true),
    ]),
    ("a machine loses power when it has made the cluster and not yet presented it", 223_811, Shape { strict: false, count: 2, native: false, ..TUNED }, &[
        (Kind::PowerLoss, 821_690_926, 350, 2, 1, 3_162_274_891, true),
        (Kind::PowerLoss, 2_425_988_521, 8_787, 2, 1, 1_644_767_412, true),
    ]),
    ("a member loses power between its cluster and its keys, and another is presented", 211_224, Shape { nodes: 2, strict: false, ..TUNED }, &[
        (Kind::LeaseRevoked, 951_175_627, 2_574, 0, 1, 385_495_303, false),
        (Kind::PowerLoss, 1_946_714_510, 4_925, 1, 1, 3_346_029_301, false),
    ]),
    ("a server of a cluster that nobody made runs on when its agent has ended", 8_589_042, Shape { nodes: 2, strict: false, rewind: false, ..TUNED }, &[
        (Kind::LeaseRevoked, 282_712_278, 1_437, 1, 1, 1_054_516_376, true),
        (Kind::Shutdown, 3_088_350_991, 4_937, 1, 0, 3_775_628_024, true),
        (Kind::CutEtcd, 629_110_689, 3_053, 0, 0, 1_578_076_587, false),
    ]),
    ("a cluster whose keys were never there needs a name", 10_057_551, Shape { nodes: 2, strict: false, profile: "fast", ..TUNED }, &[
        (Kind::Isolate, 403_432_478, 603, 1, 1, 4_003_764_414, true),
        (Kind::Shutdown, 2_626_458_528, 10_091, 1, 0, 463_478_889, false),
        (Kind::Shutdown, 1_706_992_787, 533, 1, 0, 3_549_257_953, false),
    ]),
    ("a machine loses power before the keys of its cluster are known to be there, and is named", 10_083_162, Shape { nodes: 1, sync: "off", strict: false, native: false, quorum_failover: false, ..TUNED }, &[
        (Kind::PowerLoss, 2_009_889_693, 581, 0, 0, 2_229_953_333, true),
        (Kind::PowerLoss, 3_701_098_960, 9_060, 0, 0, 652_048_446, true),
        (Kind::EtcdLeaderChange, 397_928_156, 982, 0, 0, 3_969_453_679, false),
    ]),
];

/// While it stood.
#[rustfmt::skip]
const CLUSTERS: &[Row] = &[
    ("/leader that was deleted before the renewal that wrote it was answered comes back", 10_911, Shape { quorum_failover: false, profile: "safe", backoff: 6, ..TUNED }, &[
        (Kind::Pause, 736_170_893, 8_656, 0, 1, 2_653_356_913, true),
        (Kind::LeaseRevoked, 1_225_715_699, 937, 0, 1, 3_337_146_606, true),
    ]),
    ("failsafe mode asks before a short lease has run out", 10_714, Shape { quorum_failover: false, failsafe: true, ..TUNED }, &[
        (Kind::EtcdDown, 374_721_708, 3_268, 1, 2, 2_085_126_986, true),
    ]),
    ("agents restarted under failsafe mode wait as long as a promise may last", 13_543, Shape { nodes: 2, failsafe: true, ..TUNED }, &[
        (Kind::PowerLoss, 427_125_678, 69, 1, 1, 3_732_138_502, true),
        (Kind::PowerLoss, 835_838_772, 116, 0, 1, 1_200_553_331, true),
        (Kind::PowerLoss, 1_230_120_945, 431, 1, 0, 915_293_513, true),
    ]),
    ("etcd is replaced during a pause", 14_072, Shape { count: 2, ..TUNED }, &[
        (Kind::SwitchoverTo, 5_169_466_720, 8_274, 0, 0, 2_497_790_244, true),
        (Kind::Pause, 5_032_253_153, 7_279, 2, 0, 1_263_097_257, true),
        (Kind::Pause, 5_070_257_687, 9_668, 1, 2, 1_368_231_643, true),
        (Kind::EtcdWiped, 740_640_494, 6_075, 1, 0, 1_544_004_117, false),
        (Kind::SwitchoverTo, 8_069_003_137, 11_642, 1, 1, 3_979_382_891, false),
        (Kind::EtcdWiped, 8_765_816_562, 3_885, 0, 2, 1_183_131_549, false),
    ]),
    ("a primary that was cut off comes up again within its lease", 17_722, Shape { sync: "on", profile: "safe", start_timeout: 0, ..TUNED }, &[
        (Kind::GuardianKilled, 10_864_683_771, 8_790, 2, 2, 1_398_326_702, true),
        (Kind::Isolate, 9_632_393_819, 9_952, 2, 0, 453_617_356, true),
        (Kind::Isolate, 4_167_897_986, 7_716, 0, 1, 209_032_141, true),
        (Kind::Isolate, 4_514_352_579, 10_841, 2, 2, 2_343_415_320, true),
        (Kind::GuardianKilled, 5_899_207_725, 3_631, 2, 2, 2_907_251_506, true),
        (Kind::GuardianKilled, 6_318_141_259, 3_403, 0, 1, 95_431_231, false),
    ]),
    ("positions from before the lock was free do not count in a race", 6_498, Shape { native: false, quorum_failover: false, profile: "fast", ..TUNED }, &[
        (Kind::DataHidden, 277_966_358, 5_964, 2, 1, 3_800_981_641, true),
        (Kind::CutPg, 167_543_846, 9_592, 0, 0, 3_861_154_852, true),
    ]),
    ("clients read what crash recovery made visible before the start was over", 18_246, Shape { strict: false, count: 2, rewind: false, ..TUNED }, &[
        (Kind::GuardianKilled, 4_521_512_054, 2_744, 0, 1, 3_567_591_820, true),
        (Kind::Isolate, 3_517_502_357, 3_068, 0, 0, 473_112_815, true),
    ]),
    ("a member that was promoted by hand does not say that it follows when it cannot", 36_446, Shape { nodes: 2, rewind: false, wipe: false, ..TUNED }, &[
        (Kind::PromotedByHand, 4_116_050_776, 9_932, 1, 0, 2_282_301_395, false),
    ]),
    ("a candidate that answers at once is not asked again at once", 27_504, Shape { strict: false, profile: "safe", start_timeout: 0, ..TUNED }, &[
        (Kind::SwitchoverTo, 1_615_951_223, 5_232, 1, 2, 3_308_904_516, true),
        (Kind::EtcdSlow, 493_419_412, 8_173, 2, 2, 1_369_064_547, true),
        (Kind::CutPg, 3_014_413_649, 10_670, 1, 0, 3_774_509_179, true),
    ]),
    ("a stopped leader does not hurry at the end of its lease", 64_841, Shape { sync: "off", strict: false, profile: "safe", start_timeout: 0, ..TUNED }, &[
        (Kind::Isolate, 1_672_761_855, 6_412, 2, 1, 3_834_067_464, true),
        (Kind::SwitchoverTo, 379_054_600, 4_627, 1, 1, 141_802_951, true),
        (Kind::Isolate, 319_904_825, 1_296, 1, 2, 268_412_796, true),
    ]),
    ("etcd is emptied while the old primary stands still and another has taken over: it asks before it leads on", 707_633, Shape { count: 2, profile: "safe", rewind: false, ..TUNED }, &[
        (Kind::NodeFreeze, 4_038_034_355, 3_092, 0, 2, 2_927_198_930, true),
        (Kind::EtcdWiped, 6_891_767_930, 7_779, 2, 0, 3_181_644_778, false),
    ]),
    ("the pause ends while the primary does not hear of it: the others wait as long as its lease again", 1_942_970, Shape { strict: false, ..TUNED }, &[
        (Kind::Pause, 2_095_303_671, 4_889, 2, 0, 1_408_705_913, true),
        (Kind::EtcdLossy, 2_836_683_696, 4_135, 0, 0, 129_966_766, true),
        (Kind::EtcdLossy, 334_563_012, 7_553, 2, 0, 3_084_158_912, false),
        (Kind::LeaderDeleted, 4_406_630_174, 4_828, 1, 0, 276_083_617, true),
        (Kind::PgSilent, 6_515_147_370, 1_121, 2, 2, 2_119_460_641, true),
    ]),
    ("an unreadable record was deleted, and the next leader goes on above the epochs that others know of", 558_014, Shape { start_timeout: 0, rewind: false, ..TUNED }, &[
        (Kind::Shutdown, 5_354_553_099, 10_247, 0, 2, 2_723_417_109, true),
        (Kind::RecordGarbled, 5_977_910_342, 3_706, 0, 1, 3_259_685_239, false),
        (Kind::RecordGarbled, 4_159_145_995, 664, 1, 0, 294_985_108, true),
        (Kind::Shutdown, 3_195_011_929, 4_826, 0, 2, 795_347_382, false),
        (Kind::Shutdown, 2_758_582_156, 309, 1, 0, 2_364_034_889, true),
    ]),
    ("the end of a pause is lost with etcd", 675_636, Shape { nodes: 1, sync: "off", strict: false, profile: "fast", ..TUNED }, &[
        (Kind::Pause, 1_217_028_401, 1_132, 0, 0, 1_991_942_329, true),
        (Kind::EtcdWiped, 3_018_174_667, 84, 0, 0, 2_927_911_628, true),
        (Kind::LoopStall, 1_333_503_214, 7_385, 0, 0, 1_133_992_851, true),
    ]),
    ("a restart goes on after the deadline while the loop hangs", 1_883_954, Shape { strict: false, ..TUNED }, &[
        (Kind::LoopStall, 862_980_674, 11_040, 2, 1, 3_275_597_784, true),
        (Kind::SlowPostgres, 612_021_620, 513, 2, 1, 2_943_236_412, true),
        (Kind::Restart, 713_830_007, 4_657, 1, 0, 1_365_585_285, true),
    ]),
    ("a guardian is killed just before its machine stands still", 1_358_038, Shape { sync: "off", strict: false, ..TUNED }, &[
        (Kind::GuardianKilled, 759_461_751, 3_249, 2, 0, 1_524_691_049, false),
        (Kind::NodeFreeze, 762_695_936, 978, 1, 2, 337_665_491, true),
        (Kind::NodeFreeze, 1_140_999_605, 7_972, 1, 2, 2_147_882_285, true),
    ]),
    ("a leader whose own key went with its lease leads by the record as before", 2_851_359, Shape { nodes: 2, start_timeout: 0, ..TUNED }, &[
        (Kind::LeaseRevoked, 80_435_998, 4_222, 0, 1, 1_955_817_284, true),
        (Kind::PgSilent, 592_939_600, 231, 1, 1, 2_607_002_308, true),
        (Kind::CutEtcd, 230_739_010, 830, 0, 0, 2_924_053_918, true),
        (Kind::LeaseRevoked, 978_269_598, 1_475, 1, 1, 1_198_698_720, true),
        (Kind::PgSilent, 837_751_506, 3_378, 0, 1, 3_030_503_665, true),
    ]),
    ("a primary that stands back in pause keeps its record, and is stopped when the pause ends", 2_709_740, Shape { strict: false, quorum_failover: false, profile: "fast", failsafe: true, ..TUNED }, &[
        (Kind::OtherSystem, 2_619_842_779, 1_098, 2, 1, 797_078_447, true),
        (Kind::Pause, 2_341_526_211, 4_773, 0, 2, 1_819_051_413, false),
        (Kind::OtherSystem, 1_590_898_790, 756, 1, 1, 3_029_193_455, true),
        (Kind::Pause, 1_481_423_482, 1_940, 0, 0, 2_310_553_727, false),
        (Kind::OtherSystem, 616_364_671, 10_105, 2, 0, 2_806_762_128, true),
    ]),
    ("who led last does not yield to a timeline that was made by hand", 3_321_154, Shape { nodes: 2, strict: false, profile: "fast", start_timeout: 0, ..TUNED }, &[
        (Kind::EtcdWiped, 3_874_353_483, 10_332, 1, 1, 1_690_851_213, true),
        (Kind::CutPg, 556_461_537, 5_688, 0, 0, 700_047_786, true),
        (Kind::EtcdWiped, 3_638_984_801, 11_285, 0, 1, 218_606_291, true),
        (Kind::PromotedByHand, 1_353_550_875, 6_481, 1, 0, 2_299_376_500, false),
    ]),
    ("a standby that was promoted by hand is not the last primary", 3_405_767, Shape { sync: "on", strict: false, rewind: false, ..TUNED }, &[
        (Kind::OtherSystem, 284_560_230, 10_845, 2, 0, 2_285_776_791, true),
        (Kind::PromotedByHand, 221_613_359, 9_561, 0, 1, 3_479_395_730, false),
        (Kind::EtcdWiped, 1_144_287_291, 10_667, 0, 1, 3_762_189_184, false),
    ]),
    ("a standby is cut off from where it streams before it is compared with a new leader", 470_872, Shape { strict: false, quorum_failover: false, failsafe: true, ..TUNED }, &[
        (Kind::Isolate, 1_528_898_793, 4_719, 1, 1, 92_305_353, true),
        (Kind::Isolate, 1_765_456_404, 11_499, 1, 0, 158_076_631, true),
        (Kind::Isolate, 838_736_597, 69, 0, 1, 3_294_904_473, true),
        (Kind::Isolate, 2_870_155_302, 9_692, 1, 1, 3_081_376_737, false),
    ]),
    ("clients are held back while a primary is stopped that recovered", 1_190_266, Shape { strict: false, failsafe: true, ..TUNED }, &[
        (Kind::Isolate, 712_170_510, 11_750, 0, 2, 1_642_520_295, true),
        (Kind::GuardianKilled, 982_906_039, 1_086, 2, 2, 1_575_430_600, false),
    ]),
    ("an epoch that only the guardian knows of counts for the next claim", 5_469_512, Shape { sync: "on", strict: false, quorum_failover: false, failsafe: true, start_timeout: 0, ..TUNED }, &[
        (Kind::AgentCrash, 3_980_067_078, 5_170, 0, 0, 3_357_235_910, true),
        (Kind::RecordGarbled, 2_609_304_094, 1_621, 0, 2, 2_159_517_905, true),
        (Kind::RecordGarbled, 1_405_271_833, 1_119, 2, 0, 2_304_476_644, true),
    ]),
    ("a timeline of a number in the leader's history may be another", 6_237_752, Shape { nodes: 2, sync: "on", ..TUNED }, &[
        (Kind::EtcdLossy, 1_957_186_232, 11_030, 1, 0, 3_611_449_078, true),
        (Kind::Switchover, 2_412_370_222, 2_385, 1, 0, 915_112_016, true),
        (Kind::PromotedByHand, 6_867_516_309, 1_414, 1, 1, 3_726_520_695, true),
    ]),
    ("before the first promotion the leader's timeline is known", 6_479_872, Shape { failsafe: true, wipe: false, ..TUNED }, &[
        (Kind::OtherSystem, 3_058_827_678, 3_067, 2, 0, 3_495_424_605, false),
        (Kind::GuardianKilled, 1_579_179_129, 7_847, 2, 2, 4_144_585_118, false),
        (Kind::PromotedByHand, 1_229_019_701, 3_943, 0, 1, 3_212_882_507, false),
        (Kind::OtherSystem, 786_770_385, 1_438, 2, 0, 2_018_888_105, false),
    ]),
    ("who was promoted by hand gives no vote", 6_503_060, Shape { start_timeout: 0, ..TUNED }, &[
        (Kind::Shutdown, 5_463_092_285, 11_894, 1, 2, 3_728_813_908, true),
        (Kind::Shutdown, 5_582_792_015, 9_690, 0, 1, 2_266_853_112, false),
        (Kind::PromotedByHand, 8_050_918_718, 5_898, 0, 2, 3_251_248_946, true),
        (Kind::AgentCrash, 1_455_702_966, 7_973, 2, 0, 653_006_719, false),
    ]),
    ("no agent leaves a primary behind whose lock is free", 1_131_112, Shape { native: false, quorum_failover: false, start_timeout: 0, rewind: false, ..TUNED }, &[
        (Kind::Pause, 2_132_424_759, 1_343, 1, 0, 1_886_677_097, true),
        (Kind::OtherSystem, 1_702_589_575, 3_193, 1, 1, 551_725_963, true),
    ]),
    ("the candidate of a switchover in pause is compared too", 2_359_240, Shape { profile: "safe", start_timeout: 0, ..TUNED }, &[
        (Kind::SwitchoverTo, 1_055_010_345, 2_673, 1, 1, 284_122_713, true),
        (Kind::SwitchoverTo, 1_433_533_956, 484, 0, 1, 3_505_174_284, true),
        (Kind::SwitchoverTo, 1_358_087_997, 7_549, 1, 0, 14_075_364, false),
        (Kind::Pause, 737_295_562, 4_820, 1, 1, 1_812_724_595, true),
    ]),
    ("a race begins when the lock is free this time", 2_533_720, Shape { strict: false, profile: "fast", ..TUNED }, &[
        (Kind::SwitchoverTo, 2_992_173_899, 8_882, 2, 2, 3_065_721_920, true),
        (Kind::SwitchoverTo, 7_265_733_364, 4_339, 1, 1, 3_941_089_048, false),
        (Kind::Shutdown, 7_714_830_553, 1_512, 0, 0, 702_096_379, true),
    ]),
    ("a standby that was promoted by hand takes no free lock", 2_548_212, Shape { strict: false, quorum_failover: false, failsafe: true, ..TUNED }, &[
        (Kind::PromotedByHand, 3_625_797_123, 3_224, 1, 0, 2_092_015_701, false),
        (Kind::CutEtcd, 4_670_306_652, 3_743, 1, 2, 2_516_865_356, false),
        (Kind::CutEtcd, 157_012_743, 11_976, 1, 0, 2_972_382_765, true),
        (Kind::CutEtcd, 3_171_173_549, 6_496, 0, 2, 1_010_900_431, true),
    ]),
    ("who has handed over in pause is not restarted as a primary before the candidate leads", 3_626_996, Shape { nodes: 5, count: 2, native: false, profile: "safe", ..TUNED }, &[
        (Kind::Restart, 4_856_717_331, 9_796, 0, 3, 4_043_070_876, true),
        (Kind::SwitchoverTo, 4_686_216_592, 11_537, 0, 3, 320_208_893, true),
        (Kind::Pause, 4_312_752_593, 6_726, 0, 1, 1_861_221_578, false),
    ]),
    ("etcd is emptied twice, and nobody is named for a timeline that was made by hand", 4_298_997, Shape { strict: false, count: 2, profile: "fast", failsafe: true, start_timeout: 0, ..TUNED }, &[
        (Kind::EtcdWiped, 1_214_112_033, 311, 0, 0, 2_029_924_380, false),
        (Kind::PromotedByHand, 1_520_676_111, 1_211, 0, 1, 366_020_268, false),
        (Kind::EtcdWiped, 1_687_273_444, 2_118, 1, 0, 1_359_737_779, true),
    ]),
    ("who led in an epoch leads on without a record, and etcd is emptied once more", 4_474_407, Shape { strict: false, rewind: false, ..TUNED }, &[
        (Kind::EtcdWiped, 354_951_876, 4_466, 2, 0, 3_858_587_692, false),
        (Kind::PromotedByHand, 640_665_234, 11_503, 1, 0, 667_933_527, false),
        (Kind::EtcdWiped, 1_297_733_143, 8_987, 1, 2, 1_955_221_763, true),
    ]),
    ("a member without data is not named", 5_034_759, Shape { strict: false, ..TUNED }, &[
        (Kind::PromotedByHand, 436_874_580, 821, 1, 0, 1_120_970_134, false),
        (Kind::EtcdWiped, 662_525_654, 5_349, 2, 1, 4_086_962_767, true),
        (Kind::EtcdWiped, 53_840_724, 6_896, 0, 2, 1_933_749_265, true),
    ]),
    ("nobody is named for a timeline that was made by hand beside a compatible lock", 5_720_575, Shape { strict: false, native: false, profile: "safe", start_timeout: 0, rewind: false, wipe: false, ..TUNED }, &[
        (Kind::PowerLoss, 4_688_924_352, 4_928, 1, 1, 758_253_134, true),
        (Kind::EtcdWiped, 6_936_008_192, 11_429, 2, 1, 12_471_344, true),
        (Kind::PromotedByHand, 4_484_944_096, 445, 0, 1, 1_499_132_582, false),
    ]),
    ("a silent primary that came through a pause without a deadline is stopped when it is blind", 9_067_075, Shape { strict: false, backoff: 6, ..TUNED }, &[
        (Kind::PgSilent, 1_676_121_054, 7_267, 2, 0, 2_062_901_377, true),
        (Kind::EtcdSlow, 5_520_192_845, 9_066, 0, 1, 3_020_677_440, false),
        (Kind::PgSilent, 6_346_932_674, 8_441, 1, 1, 3_766_452_586, true),
        (Kind::Pause, 6_218_730_087, 1_874, 2, 1, 1_483_147_696, false),
        (Kind::Pause, 5_175_341_642, 1_075, 1, 1, 408_061_147, true),
    ]),
    ("an agent stands still while the pause of its primary ends, which is not promised", 8_152_962, Shape { ..TUNED }, &[
        (Kind::AgentFreeze, 962_943_142, 11_267, 2, 0, 668_646_168, true),
        (Kind::Pause, 7_010_247, 2_879, 1, 1, 3_953_767_823, true),
        (Kind::AgentFreeze, 48_138_520, 3_008, 1, 1, 3_200_296_243, true),
        (Kind::Pause, 829_562_398, 3_747, 1, 2, 525_397_696, true),
    ]),
    ("the timeline of a leader whose server is gone is remembered while another was made by hand", 11_867_780, Shape { rewind: false, ..TUNED }, &[
        (Kind::DataHidden, 805_578_961, 9_989, 2, 2, 3_683_740_002, true),
        (Kind::DataHidden, 7_947_798_154, 2_473, 2, 0, 3_574_541_527, true),
        (Kind::PromotedByHand, 808_675_429, 3_707, 1, 1, 2_889_916_763, false),
    ]),
    ("who led last leads on although the record was deleted and a timeline made by hand", 11_992_301, Shape { profile: "fast", wipe: false, ..TUNED }, &[
        (Kind::PromotedByHand, 1_502_947_027, 768, 1, 1, 1_821_675_573, false),
        (Kind::Shutdown, 1_708_157_496, 5_951, 2, 0, 1_793_658_162, false),
        (Kind::RecordDeleted, 5_524_964_697, 1_329, 2, 1, 619_438_925, false),
        (Kind::PromotedByHand, 6_714_779_508, 6_327, 0, 0, 2_192_693_150, false),
    ]),
    ("a leader that was cut off past its deadline does not write its key anew on the session that it is on", 12_589_413, Shape { nodes: 1, sync: "off", strict: false, native: false, profile: "safe", start_timeout: 0, rewind: false, ..TUNED }, &[
        (Kind::CutEtcd, 6_470_375_229, 11_440, 0, 0, 2_881_378_751, true),
        (Kind::CutEtcd, 620_538_009, 10_878, 0, 0, 1_594_138_618, true),
        (Kind::LoopStall, 2_302_466_580, 6_720, 0, 0, 4_282_672_482, true),
    ]),
    ("a configuration is written anew in the next etcd at the revision at which it was in the last one", 13_374_121, Shape { sync: "on", ..TUNED }, &[
        (Kind::NodeCount, 284_597_603, 1_473, 2, 0, 649_624_426, true),
        (Kind::NodeCount, 676_620_242, 9_939, 2, 2, 411_864_385, true),
        (Kind::EtcdWiped, 437_930_255, 115, 1, 1, 165_018_483, false),
        (Kind::EtcdWiped, 92_365_726, 11_080, 2, 0, 4_216_009_583, false),
    ]),
    ("a standby is promoted by hand while its agent is away, which is not promised", 13_929_415, Shape { quorum_failover: false, ..TUNED }, &[
        (Kind::AgentCrash, 6_227_249_119, 11_473, 1, 1, 3_762_481_720, true),
        (Kind::PromotedByHand, 860_628_151, 3_963, 0, 1, 3_918_634_192, false),
        (Kind::AgentCrash, 807_946_587, 10_355, 0, 0, 892_392_375, false),
    ]),
    ("an agent that has begun to stop its server does not leave it because it hears of a pause that is over", 16_419_107, Shape { sync: "on", profile: "safe", ..TUNED }, &[
        (Kind::LoopStall, 284_507_434, 3_745, 2, 0, 1_497_125_191, false),
        (Kind::Shutdown, 3_516_958_877, 10_484, 2, 1, 1_868_314_633, false),
        (Kind::LoopStall, 5_723_279_140, 11_696, 1, 2, 1_020_520_626, true),
        (Kind::Pause, 927_538_398, 1_105, 2, 1, 1_437_948_593, true),
    ]),
    ("a standby is promoted by hand while its agent stands still, which is not promised", 18_300_992, Shape { sync: "on", strict: false, count: 2, native: false, profile: "fast", ..TUNED }, &[
        (Kind::AgentFreeze, 7_753_178_192, 8_535, 0, 1, 1_584_861_624, true),
        (Kind::PromotedByHand, 740_704_412, 3_767, 0, 2, 217_543_408, false),
        (Kind::AgentFreeze, 493_536_364, 11_940, 0, 0, 1_850_284_682, false),
    ]),
    ("a keepalive of a deposed leader of etcd is not proved by another server", 22_189_385, Shape { nodes: 2, sync: "on", strict: false, native: false, profile: "fast", failsafe: true, ..TUNED }, &[
        (Kind::StaleLessor, 386_199_637, 2_868, 1, 1, 3_947_275_579, true),
        (Kind::StaleLessor, 3_188_915_233, 11_560, 1, 1, 2_091_665_677, true),
        (Kind::NodeFreeze, 8_148_118_808, 11_667, 1, 0, 3_773_186_832, true),
    ]),
];
